"""SIGTERM and SIGINT at random moments, to the process and to its whole group, and SIGKILL to a loader worker, as where
memory is short; then the run is resumed and compared."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from job import SIDES, Child, Job, Side, compare
from kills import peaceful


def kill_worker(child: Child) -> None:
    """SIGKILL to the first of its loader workers."""
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)


STRIKES: dict[str, Callable[[Child], None]] = {
    "SIGTERM to the process": lambda child: os.kill(child.pid, signal.SIGTERM),
    "SIGTERM to the group, with loader workers": lambda child: os.killpg(child.pid, signal.SIGTERM),
    "SIGINT to the process": lambda child: os.kill(child.pid, signal.SIGINT),
    "SIGINT to the group, with loader workers": lambda child: os.killpg(child.pid, signal.SIGINT),
    "SIGKILL to a loader worker": kill_worker,
}


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """Each of them `tries` times."""
    job = Job(folder, steps=76)
    for make in sides:
        whole, _ = peaceful(make, job, folder / f"{make.__name__}_whole")
        for fault in STRIKES:
            yield storm(make, job, whole, fault, tries)


def storm(make: type[Side], job: Job, whole: Side, fault: str, tries: int) -> dict:
    """`tries` runs struck once each."""
    rng = random.Random(fault)
    done, begun = [], 0
    while len(done) < tries:
        side = make(job, job.folder / f"{make.__name__}_{fault.replace(' ', '_')}_{begun}")
        begun += 1
        one = struck(side, whole, rng, STRIKES[fault])
        done += [] if one is None else [one]
    note = f"exit status {counted(one['status'] for one in done)}; {total(done, 'unsaved')} finished steps not saved"
    return {"fault": fault, "side": make.name, "tries": tries, **figures(done), "note": note}


def figures(done: Sequence[dict]) -> dict[str, int]:
    """What is counted of every run, over all of them."""
    counted = {key: total(done, key) for key in ("lost", "doubled", "torn", "tensors_wrong")}
    return {**counted, "wrong": total(done, "losses_wrong"), "of": total(done, "losses")}


def total(done: Sequence[dict], key: str) -> int:
    return sum(one[key] for one in done)


def counted(statuses: Iterable[int | None]) -> str:
    """How often there was which: "3 x 0, 1 x 143"."""
    return ", ".join(f"{count} x {status}" for status, count in sorted(Counter(map(str, statuses)).items()))


def struck(side: Side, whole: Side, rng: random.Random, strike: Callable[[Child], None]) -> dict | None:
    """One run, struck after its first step, and resumed to its end; None if it was done all the same."""
    child = side.start()
    wanted = 2 + rng.randrange(int(0.8 * whole.batches()))
    child.wait(until=lambda: side.batches() >= wanted)
    child.wait(rng.uniform(0, 0.2))
    if child.ended() or side.batches() >= whole.batches() - 4:
        child.kill() if not child.ended() else child.sweep()
        return None
    strike(child)
    child.wait(60)
    child.kill() if not child.ended() else child.sweep()
    if side.finished():
        return None
    finished = max(line[2] for line in side.lines())
    saved = max((step_of(file) for file in side.checkpoints()), default=0)
    resumed = side.start()
    resumed.wait()
    torn = int(resumed.status != 0)
    return {**compare(side, whole), "status": child.status, "torn": torn, "unsaved": finished - saved}


def step_of(file: Path) -> int:
    """The step a checkpoint holds."""
    return torch.load(file, weights_only=True, map_location="cpu")["global_step"]
