"""The clock is set back by a year while a run trains; later the run is killed, and resumed.

In the process the clock is replaced; of files written after that moment the times are set back.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

from job import SIDES, Job, Side, compare
from kills import peaceful
from stops import figures, step_of, total

YEAR = 365 * 86_400
"""In seconds; as the witness has it."""


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """`tries` runs on each side."""
    job = Job(folder, steps=76, accumulate=1)
    for make in sides:
        whole, _ = peaceful(make, job, folder / f"{make.__name__}_whole")
        rng = random.Random(8)
        done = [set_back(make, job, f"{make.__name__}_{number}", whole, rng) for number in range(tries)]
        yield {
            "fault": "clock set back, then kill -9", "side": make.name, "tries": tries, **figures(done),
            "note": f"{total(done, 'older')} resumes did not begin at the newest checkpoint",
        }  # fmt: skip


def set_back(make: type[Side], job: Job, name: str, whole: Side, rng: random.Random) -> dict:
    """The clock goes back after some steps, the run is killed some steps later."""
    at = 6 + rng.randrange(job.steps // 3)
    side = make(job, job.folder / name, fault="clock", at=at)
    child = side.start()
    child.wait(until=lambda: side.batches() > at)
    known = {file: file.stat().st_mtime_ns for file in files(side)}
    wanted = at + 6 + rng.randrange(job.steps // 3)
    child.wait(until=lambda: side.batches() >= wanted)
    child.kill()
    for file in files(side):
        written = file.stat().st_mtime_ns
        if known.get(file) != written:
            os.utime(file, ns=(written, written - YEAR * 10**9))
    newest, before = max(step_of(file) for file in side.checkpoints() if side.loads(file)), len(side.lines())
    resumed = side.start()
    resumed.wait()
    older = int(side.lines()[before][2] != newest + 1)
    return {**compare(side, whole), "older": older, "torn": int(resumed.status != 0)}


def files(side: Side) -> list[Path]:
    """All of the run."""
    return [file for file in side.folder.rglob("*") if file.is_file()]
