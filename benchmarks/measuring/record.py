"""Figures as JSON lines: printed, and kept with machine, date, versions and command where that is asked."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "litgpt")


def keep_option(parser: argparse.ArgumentParser) -> None:
    """The option that `Record` looks at."""
    parser.add_argument("--record", action="store_true", help="append the lines to benchmarks/results/DATE-cpu.jsonl")


def say(benchmark: str, figures: Mapping[str, object], record: bool) -> None:
    """Print a line, and keep it if asked."""
    line = {"benchmark": benchmark, **figures, **place()}
    print(json.dumps(line), flush=True)
    if record:
        RESULTS.mkdir(exist_ok=True)
        with open(RESULTS / f"{date.today().isoformat()}-cpu.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def place() -> dict[str, object]:
    """Where, when, how and with what figures are measured."""
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores of {processor()}",
        "load": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **versions()},
    }


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
