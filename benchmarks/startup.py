"""Processor seconds before training: of `--help`, of importing Lightning's command line, of `fit`'s first step.

    python benchmarks/startup.py [--rounds N] [--quick]

prints one JSON line: medians over rounds in which each runs once, and what `fit` takes more than the import, round by
round. The text that `fit` reads has been tokenised before, and its network is tiny. Files are in the system's cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring.commands import command, environment_of, prepared
from measuring.record import say
from measuring.turns import Running

HELP = ["-m", "lit_small_lm", "--help"]
IMPORTS = {"import_torch": ["-c", "import torch"], "import_lightning_cli": ["-c", "import lightning.pytorch.cli"]}


def spent(arguments: Sequence[str]) -> float:
    """Processor seconds of a Python process and those it starts."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments}: exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def first_step(folder: Path, number: int) -> float:
    """Processor seconds of `fit` until its first step is done."""
    asked = command("fit", "tiny", 1, folder)
    asked[asked.index("--run_dir") + 1] += str(number)
    peer = Running("fit", asked, environment_of("default", 1), 1)
    seconds = peer.settings["start_up"] + peer.turn().processor
    peer.end()
    return seconds


def main() -> None:
    """Measure in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="`--help` alone")
    asked = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as made:
        if not asked.quick:
            prepared("tiny", 1, Path(made), environment_of("default", 1))
        for number in range(1 if asked.quick else asked.rounds):
            found.setdefault("help", []).append(spent(HELP))
            if not asked.quick:
                for name, arguments in IMPORTS.items():
                    found.setdefault(name, []).append(spent(arguments))
                found.setdefault("fit_to_first_step", []).append(first_step(Path(made), number))
    seconds = {name: round(statistics.median(values), 3) for name, values in found.items()}
    if not asked.quick:
        pairs = zip(found["fit_to_first_step"], found["import_lightning_cli"], strict=True)
        more = [fit - imported for fit, imported in pairs]
        seconds |= {"fit_over_import": round(statistics.median(more), 3), "lowest": round(min(more), 3)}
        seconds |= {"highest": round(max(more), 3)}
    say("startup", {"rounds": asked.rounds, "processor_seconds": seconds})


if __name__ == "__main__":
    main()
