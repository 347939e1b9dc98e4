"""One process, then two, then one again, the run stopped by kill -9 each time: DDP on gloo, and FSDP2.

Losses are compared with those of one process that nobody stopped. There is no dropout, whose draws depend on the number
of processes. Plain Lightning changes its number of processes under DDP.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from job import SIDES, Job, Ours, Side, samples
from kills import peaceful
from processes import command

LEGS = (26, 52)
"""Steps after which the first and the second leg are killed."""


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """`tries` changes there and back under each strategy."""
    job = Job(folder, steps=76, workers=0, average=False, dropout=0.0, accumulate=1)
    for make in sides:
        whole, _ = peaceful(make, job, folder / f"{make.__name__}_whole")
        strategies = ("ddp", "FSDP2") if make is Ours else ("ddp",)
        for strategy in strategies:
            yield storm(make, job, whole, strategy, tries)


def storm(make: type[Side], job: Job, whole: Side, strategy: str, tries: int) -> dict:
    """Three legs; every row of every epoch is counted over all processes."""
    lost = doubled = wrong = compared = 0
    largest = 0.0
    for number in range(tries):
        side = make(job, job.folder / f"{make.__name__}_{strategy}_{number}")
        leg(command(side, 1, "auto"), side, LEGS[0])
        leg(command(side, 2, strategy), side, LEGS[1])
        leg(command(side, 1, "auto"), side, job.steps)
        rows, losses = by_step(side)
        _, wanted = by_step(whole)
        never, again = samples([row for step in sorted(rows) for row in rows[step]], side.epoch)
        lost, doubled = lost + never, doubled + again
        gaps = [abs(losses.get(step, float("inf")) - loss) / loss for step, loss in wanted.items()]
        largest, wrong = max(largest, *gaps), wrong + sum(gap > 1e-4 for gap in gaps)
        compared += len(gaps)
    return {
        "fault": f"1, 2, 1 processes, {strategy}", "side": make.name, "tries": tries, "lost": lost,
        "doubled": doubled, "wrong": wrong, "of": compared, "largest": largest,
        "note": f"largest relative difference of a loss {largest:.1e}; wrong: above 1e-4",
    }  # fmt: skip


def leg(process, side: Side, until: int) -> None:
    """Let it run until a step is done, then kill all of it."""
    limit = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < limit:
        if until < side.job.steps and any(line[2] >= until for line in side.lines()):
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()
    if until == side.job.steps and process.returncode:
        raise RuntimeError(f"ended with {process.returncode}: {side.log.read_text()[-2000:]}")


def by_step(side: Side) -> tuple[dict[int, list[int]], dict[int, float]]:
    """Rows and loss of every step, from the last time it was run, over its processes."""
    legs: dict[int, str] = {}
    for _, _, step, _, _, started in side.lines():
        legs[step] = max(legs.get(step, started), started, key=int)
    last: dict[int, dict[int, list]] = {}
    for _, rank, step, loss, rows, started in side.lines():
        if legs[step] == started:
            last.setdefault(step, {})[rank] = [loss, rows]
    rows = {step: [row for _, (_, part) in sorted(held.items()) for row in part] for step, held in last.items()}
    losses = {step: sum(loss for loss, _ in held.values()) / len(held) for step, held in last.items()}
    return rows, losses
