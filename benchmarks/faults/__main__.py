"""Fault storms: our command line and plain Lightning at the same job, with the same faults.

    python benchmarks/faults [STORM ...] [--long] [--tries N] [--side ours|plain] [--record]

Prints one JSON line for each fault and side: tries, samples lost and doubled, runs or files torn, results wrong. The
quick form takes minutes, `--long` is what `docs/reliability.md` shows. `--record` keeps the lines in
`benchmarks/results/faults.jsonl` and writes the table of that page from them.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

STORMS = {
    "kills": (1, 100), "diffusion": (1, 100), "saves": (2, 100), "damage": (1, 100), "stops": (1, 20),
    "shards": (1, 10), "twice": (1, 10), "clock": (1, 10), "nonfinite": (1, 1), "ranks": (1, 1), "processes": (1, 1),
    "disk": (1, 1), "endurance": (150, 3000),
}  # fmt: skip
"""Tries of each, in the quick form and in the long one; of endurance, steps."""


def machine() -> dict[str, object]:
    """Where the figures come from."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/faults {' '.join(sys.argv[1:])}",
        "machine": f"{os.cpu_count()} cores of {cpu.partition(':')[2].strip()}, {platform.system()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
    }


def main() -> None:
    """Run the storms asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("storms", nargs="*", help=f"of {', '.join(STORMS)}; default: all")
    parser.add_argument("--long", action="store_true", help="as many tries as the page shows")
    parser.add_argument("--tries", type=int, help="instead of either form's")
    parser.add_argument("--side", choices=("ours", "plain"), help="one of the two sides alone")
    parser.add_argument("--record", action="store_true", help="keep the lines, and write the table of the page")
    asked = parser.parse_args()
    unknown = set(asked.storms) - set(STORMS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no storm; known: {', '.join(STORMS)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["LIT_SMALL_LM_CACHE"] = str(Path(folder) / "cache")
        import torch
        from job import SIDES

        torch.set_num_threads(1)
        for name in asked.storms or STORMS:
            tries = asked.tries or STORMS[name][asked.long]
            sides = [side for side in SIDES if asked.side in (None, side.__name__.lower())]
            for line in importlib.import_module(name).run(Path(folder) / name, tries, sides):
                print(json.dumps({"benchmark": "faults", "storm": name, **line}), flush=True)
                if asked.record:
                    importlib.import_module("table").record([{"storm": name, **line, **machine()}])


if __name__ == "__main__":
    main()
