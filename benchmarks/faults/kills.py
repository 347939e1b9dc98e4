"""Kill storm: kill -9 at random moments, until the run is done; then it is compared with one in peace."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from job import SIDES, Child, Job, Side, compare


def peaceful(make: type[Side], job: Job, folder: Path) -> tuple[Side, float]:
    """A run that nothing happens to, and the seconds until its first batch was done."""
    side, begun = make(job, folder), time.monotonic()
    child = side.start()
    child.wait(until=side.batches)
    start = time.monotonic() - begun
    child.wait()
    if child.status:
        raise RuntimeError(f"the run in peace ended with {child.status}: {side.log.read_text()[-2000:]}")
    return side, start


def stormy(side: Side, whole: Side, start: float, rng: random.Random, tries: int) -> tuple[int, int]:
    """Kill a run up to `tries` times until it is done; kills and exit status. Once all is saved, none counts."""
    kills = 0
    while True:
        child = side.start()
        if child.wait() if kills == tries else over(side, child, rng, start, whole.batches()):
            return kills, child.status
        child.kill()
        if side.finished():
            return kills, 0
        kills += 1


def over(side: Side, child: Child, rng: random.Random, start: float, batches: int) -> bool:
    """Wait for a random moment, in the start (one in six) or among the first 0.7 of as many batches as a whole run has.

    Batches are counted, not seconds, so that a busy machine does not draw moments to the start. True if it has ended.
    """
    share = rng.uniform(-0.14, 0.7)
    if share < 0:
        return child.wait(rng.uniform(0, start))
    wanted = side.batches() + 1 + int(share * batches)
    return child.wait(until=lambda: side.batches() >= wanted) or child.wait(rng.uniform(0, 0.2))


def run(folder: Path, tries: int, sides=SIDES, objective: str = "autoregressive") -> Iterator[dict]:
    """`tries` kills on each side."""
    for make in sides:
        yield storm(make, Job(folder, objective), tries)


def storm(make: type[Side], job: Job, tries: int) -> dict:
    """`tries` kills, over as many runs as it takes."""
    rng, done, total = random.Random(1), [], 0
    whole, start = peaceful(make, job, job.folder / f"{make.__name__}_whole")
    while total < tries:
        side = make(job, job.folder / f"{make.__name__}_{len(done)}")
        kills, status = stormy(side, whole, start, rng, tries - total)
        total += kills
        torn = int(status != 0 or len(side.kept()) < len(whole.kept()))
        done.append({"torn": torn, **compare(side, whole)})
    total_of = {key: sum(run[key] for run in done) for key in done[0]}
    return {
        "fault": f"kill -9 at a random moment, {job.objective}", "side": make.name, "tries": total, "runs": len(done),
        "lost": total_of["lost"], "doubled": total_of["doubled"], "torn": total_of["torn"],
        "wrong": total_of["losses_wrong"], "of": total_of["losses"], "tensors_wrong": total_of["tensors_wrong"],
        "useful_share": round(total_of["losses"] / total_of["batches_run"], 3),
        "note": f"{100 * total_of['losses'] / total_of['batches_run']:.1f} % of the batches run were useful",
    }  # fmt: skip
