"""Every benchmark but the study of depth, which takes hours: `python benchmarks [NAME ...] [--quick] [--record]`.

One JSON line for each figure. What else is asked goes to each of those named: `python benchmarks training --shape S1`.
`--record` keeps the lines in `benchmarks/results/DATE-cpu.jsonl`.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from measuring.record import keep

FOLDER = Path(__file__).parent
LONG, OTHERS = ("depth",), ("gpu",)
"""Not run unless named: a study, and what needs a GPU."""


def names() -> list[str]:
    """Of all benchmarks."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def lines(name: str, options: list[str]) -> Iterator[str]:
    """What a benchmark prints. Raises SystemExit with its status if it failed."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        raise SystemExit(process.returncode)


def main(argv: list[str]) -> None:
    """Run those named, one after another, and stop at the first that fails."""
    if {"-h", "--help"} & set(argv) and not set(argv) & set(names()):
        print(f"{__doc__}\nNAME: {', '.join(names())}")
        return
    asked = [word for word in argv if word in names()]
    options = [word for word in argv if word not in (*asked, "--record")]
    for name in asked or [name for name in names() if name not in LONG + OTHERS]:
        for line in lines(name, options):
            kept = keep(line) if "--record" in argv and line.startswith("{") else line
            print(kept.rstrip("\n"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
