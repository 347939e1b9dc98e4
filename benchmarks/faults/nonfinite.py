"""The network answers NaN for one row of the training text."""

import math
from pathlib import Path

import torch
from job import SIDES, Job, Ours, Side

STEP, PATIENCE = 12, "1"


def run(folder: Path, tries: int, sides=SIDES) -> list[dict]:
    """Our three policies, and Lightning's default."""
    job, found = Job(folder, steps=36, workers=0), []
    for make in sides:
        ways = ("stop", "skip", "rewind") if make is Ours else ("",)
        found += [storm(make, job, way) for way in ways]
    return found


def storm(make: type[Side], job: Job, way: str) -> dict:
    """A run in peace says which row step 12 takes; then that row is poisoned."""
    whole = make(job, job.folder / f"{make.__name__}_{way}_whole")
    whole.start().wait()
    row = next(rows[0] for step, _, rows in whole.kept().values() if step == STEP)
    side = make(job, job.folder / f"{make.__name__}_{way}", fault="nan", at=row)
    more = ["--guard.non_finite", way, *(["--guard.patience", PATIENCE] if way == "rewind" else [])] if way else []
    child = side.start(*more)
    child.wait()
    poisoned = sum(not finite(file) for file in side.checkpoints())
    losses = [loss for _, (_, loss, _) in side.kept().items()]
    nan = sum(not math.isfinite(loss) for loss in losses)
    return {
        "fault": f"NaN at one row{f', guard.non_finite {way}' if way else ''}", "side": make.name, "tries": 1,
        "torn": poisoned, "wrong": nan, "of": len(losses), "status": child.status,
        "note": f"exit status {child.status}; {nan} batches with NaN, {poisoned} of {len(side.checkpoints())} "
        f"checkpoints poisoned",
    }  # fmt: skip


def finite(file: Path) -> bool:
    """Whether all weights of a checkpoint are finite."""
    state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"]
    return all(bool(value.isfinite().all()) for value in state.values())
