"""What benchmarks share: clocks, the machine, the peak of memory, and peers that are measured in turn.

Each peer of a comparison is a process of its own, and rounds go through all of them, so that what else the machine does
falls on all alike. Processor time on one thread is what other work disturbs least; wall time stands beside it.
"""

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

import torch

PACKAGES = ("torch", "lightning", "transformers", "litgpt")


class Clock(NamedTuple):
    """A moment, in seconds."""

    wall: float
    processor: float
    """Of this process, over all its threads."""

    @classmethod
    def now(cls) -> "Clock":
        """This moment."""
        return cls(time.perf_counter(), time.process_time())


def steps_between(moments: Sequence[Clock]) -> dict[str, float]:
    """The median step between moments, in milliseconds of wall and of processor time."""
    pairs = list(zip(moments[:-1], moments[1:], strict=True))
    return {
        "wall_ms": 1000 * statistics.median(after.wall - before.wall for before, after in pairs),
        "processor_ms": 1000 * statistics.median(after.processor - before.processor for before, after in pairs),
    }


def peak_mb() -> float:
    """The most memory this process has held, in MB of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def matmul_rate(size: int = 1024, count: int = 20) -> float:
    """GFLOP per processor second of float32 products of square matrices: the best of five tries."""
    a, found = torch.ones(size, size), []
    a @ a
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            a @ a
        found.append(2 * size**3 * count / (time.process_time() - began) / 1e9)
    return max(found)


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Each command's JSON line from every round; a round runs each command once, in a process of its own.

    Raises:
        RuntimeError: a process failed; with the end of what it wrote.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over rounds."""
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def busy_beside(work: Callable[[], object]) -> tuple[object, float]:
    """What the work returns, and how many cores other processes kept busy meanwhile; nan without /proc/stat."""
    before, began, own = _busy(), time.perf_counter(), sum(os.times()[:4])
    found = work()
    used = sum(os.times()[:4]) - own
    return found, max(0.0, (_busy() - before - used) / (time.perf_counter() - began))


def _busy() -> float:
    """Seconds that all cores together have worked since the machine started."""
    try:
        with open("/proc/stat") as file:
            user, nice, system = map(int, file.readline().split()[1:4])
    except OSError:
        return float("nan")
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, object]:
    """Where, when, how and with what a record was measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
