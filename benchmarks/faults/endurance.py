"""A long run: whether its memory, its open files and its steps stay what they were after a tenth of it, and whether a
run in two halves (kill -9 between them) is the same.

Memory is what belongs to the process alone (RssAnon); a step is taken in processor time, which what else the machine
does disturbs least.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from job import SIDES, Child, Job, Side, compare


class Reading(NamedTuple):
    """What a process has taken up to a step."""

    step: int
    megabytes: float
    files: int
    seconds: float


def run(folder: Path, steps: int, sides=SIDES) -> Iterator[dict]:
    """One run of `steps` steps, and one of two halves, on each side."""
    job = Job(folder, steps=steps, workers=0, accumulate=1, dim=16, n_layers=1, save_every=max(5, steps // 30))
    for make in sides:
        yield storm(make, job)


def storm(make: type[Side], job: Job) -> dict:
    """Readings at a tenth, at a third, at two thirds and at the end."""
    whole, halves = (make(job, job.folder / f"{make.__name__}_{name}") for name in ("whole", "halves"))
    child = whole.start()
    tenth, third, two_thirds, end = (reading(whole, child, job.steps * at // 30) for at in (3, 10, 20, 29))
    child.wait(3600)
    first = halves.start()
    first.wait(3600, until=lambda: halves.batches() >= job.steps // 2)
    first.kill()
    second = halves.start()
    second.wait(3600)
    slower, compared = pace(two_thirds, end) / pace(tenth, third), compare(halves, whole)
    return {
        "fault": f"{job.steps:,} steps, and in two halves", "side": make.name, "tries": 1,
        **{key: compared[key] for key in ("lost", "doubled", "tensors_wrong")}, "torn": int(second.status != 0),
        "wrong": compared["losses_wrong"], "of": compared["losses"], "slower": round(slower, 3),
        "memory_mb": [round(tenth.megabytes, 1), round(end.megabytes, 1)], "open_files": [tenth.files, end.files],
        "note": f"from step {tenth.step:,} to {end.step:,}: memory {tenth.megabytes:.0f} to {end.megabytes:.0f} MB, "
        f"open files {tenth.files} to {end.files}, a step takes {slower:.2f} times as long",
    }  # fmt: skip


def reading(side: Side, child: Child, step: int) -> Reading:
    """What the process takes when a step is done."""
    child.wait(3600, until=lambda: side.batches() >= step)
    if child.ended():
        raise RuntimeError(f"ended with {child.status}: {side.log.read_text()[-2000:]}")
    process = Path(f"/proc/{child.pid}")
    memory = int(re.search(r"RssAnon:\s+(\d+)", (process / "status").read_text())[1]) / 1024
    times = (process / "stat").read_text().rpartition(")")[2].split()[11:13]  # user and system
    seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Reading(side.batches(), memory, len(list((process / "fd").iterdir())), seconds)


def pace(first: Reading, last: Reading) -> float:
    """Processor seconds a step."""
    return (last.seconds - first.seconds) / (last.step - first.step)
