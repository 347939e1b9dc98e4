"""SIGTERM and SIGINT at random moments, to the process and to its whole group; then the run is resumed and compared."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from job import SIDES, Job, Side, compare
from kills import peaceful


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """Each signal to the process alone and to the group, `tries` times each."""
    job = Job(folder, steps=76)
    for make in sides:
        whole, seconds = peaceful(make, job, folder / f"{make.__name__}_whole")
        for number in (signal.SIGTERM, signal.SIGINT):
            for whom in ("process", "group"):
                yield storm(make, job, whole, seconds, number, whom, tries)


def storm(
    make: type[Side], job: Job, whole: Side, seconds: float, number: signal.Signals, whom: str, tries: int
) -> dict:
    """`tries` runs stopped once each."""
    rng = random.Random(f"{number.name} {whom}")
    done, begun = [], 0
    while len(done) < tries:
        side = make(job, job.folder / f"{make.__name__}_{number.name}_{whom}_{begun}")
        begun += 1
        one = stopped(side, whole, rng, seconds, number, whom)
        done += [] if one is None else [one]
    statuses: dict[str, int] = {}
    for one in done:
        statuses[str(one["status"])] = statuses.get(str(one["status"]), 0) + 1
    shown = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    return {
        "fault": f"{number.name} to the {'process' if whom == 'process' else 'group, with loader workers'}",
        "side": make.name, "tries": tries, "statuses": statuses,
        **{key: sum(one[key] for one in done) for key in ("lost", "doubled", "torn")},
        "wrong": sum(one["losses_wrong"] for one in done), "of": sum(one["losses"] for one in done),
        "tensors_wrong": sum(one["tensors_wrong"] for one in done),
        "note": f"exit status {shown}; {sum(one['unsaved'] for one in done)} finished steps not saved",
    }  # fmt: skip


def stopped(side: Side, whole: Side, rng: random.Random, seconds: float, number: int, whom: str) -> dict | None:
    """One run, stopped after its first step, and resumed to its end; None if it was done before the signal."""
    child = side.start()
    child.wait(until=lambda: len(side.lines()) >= 2)
    child.wait(rng.uniform(0, 0.5 * seconds))
    if child.ended() or len(side.kept()) >= len(whole.kept()) - 4:
        child.sweep()
        return None
    os.killpg(child.pid, number) if whom == "group" else child.kill(number)
    child.wait(60)
    child.kill() if not child.ended() else child.sweep()
    status = child.status
    lines, kept = side.lines(), side.checkpoints()
    saved = max((step_of(file) for file in kept), default=0)
    resumed = side.start()
    resumed.wait()
    compared = compare(side, whole)
    finished = max(line[2] for line in lines)
    return {**compared, "status": status, "torn": int(resumed.status != 0), "unsaved": finished - saved}


def step_of(file: Path) -> int:
    """The step a checkpoint holds."""
    return torch.load(file, weights_only=True, map_location="cpu")["global_step"]
