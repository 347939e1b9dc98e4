"""Figures as JSON lines: printed, and kept with machine, date, versions and command where that is asked."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "litgpt")


def say(benchmark: str, figures: Mapping[str, object]) -> None:
    """Print a line."""
    print(json.dumps({"benchmark": benchmark, **figures, **place()}), flush=True)


def keep(line: str) -> str:
    """Append a line that a benchmark printed to the results of the day, with where it comes from; returns it so."""
    full = json.dumps({**json.loads(line), **place()})
    with open(RESULTS / f"{date.today().isoformat()}-cpu.jsonl", "a") as file:
        file.write(full + "\n")
    return full


def place() -> dict[str, object]:
    """Where, when, how and with what figures are measured."""
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores of {processor()}",
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions()},
    }


def commit() -> str | None:
    """That of the folder the benchmarks lie in, where it is a checkout."""
    asked = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() or None


def processor() -> str:
    """What the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
