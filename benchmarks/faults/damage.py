"""The newest checkpoint cut to a random length, or with one bit flipped at a random place, or gone; then a resume."""

import math
import random
import shutil
import warnings
from pathlib import Path

from job import SIDES, Job, Ours, Side

from lit_small_lm.checkpoint import newest


def run(folder: Path, tries: int, sides=SIDES) -> list[dict]:
    """Each kind of damage, `tries` times on each side; a missing file once."""
    job = Job(folder, steps=20, workers=0)
    found = []
    for make in sides:
        whole = make(job, folder / f"{make.__name__}_whole")
        whole.start().wait()
        ended = make(Job(folder, steps=24, workers=0), whole.folder)  # four steps more, from the newest checkpoint
        found += [storm(ended, "cut", cut, tries), storm(ended, "one bit flipped", flip, tries)]
        found.append(storm(ended, "gone", lambda file, rng: file.unlink(), 1))
    return found


def storm(whole: Side, name: str, harm, tries: int) -> dict:
    """Harm, then resume; of ours most tries ask the function that every command opens a run with, as it costs less."""
    rng, done = random.Random(name), []
    ask = asked if isinstance(whole, Ours) else resumed
    right = resumed(whole, copied(whole, "right"))[1] if ask is resumed else None
    for number in range(tries):
        side = copied(whole, "harmed")
        harm(side.newest(), rng)
        how = resumed if number == 0 else ask
        done.append(how(whole, side))
    ok = sum(status == 0 for status, _ in done)
    silent = sum(status == 0 and bool(losses) and differ(losses, right) for status, losses in done) if right else 0
    noticed = "named, the one before used" if isinstance(whole, Ours) else "went on"
    return {
        "fault": f"newest checkpoint {name}", "side": whole.name, "tries": tries, "torn": tries - ok, "wrong": silent,
        "note": f"{noticed} {ok} times" + (f", of them {silent} with other losses" if right else ""),
    }  # fmt: skip


def differ(losses: list[float], right: list[float]) -> bool:
    return len(losses) != len(right) or any(not math.isclose(a, b, rel_tol=0.05) for a, b in zip(losses, right))


def copied(whole: Side, name: str) -> Side:
    """The run, elsewhere."""
    folder = whole.folder.with_name(f"{type(whole).__name__}_{name}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.folder, folder)
    side = type(whole)(whole.job, folder)
    side.seen.unlink(missing_ok=True)
    side.log.unlink(missing_ok=True)
    return side


def asked(whole: Side, side: Side) -> tuple[int, list[float]]:
    """Which checkpoint is taken: 0 if it is the one before, and the damaged one is named."""
    harmed, before = whole.checkpoints()[:2]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        taken = newest(side.folder)[0]
    named = any(harmed.name in str(one.message) for one in said)
    return int(taken.name != before.name or not named), []


def resumed(whole: Side, side: Side) -> tuple[int, list[float]]:
    """Exit status and losses of a resume; for ours also whether the damaged file was named."""
    if not isinstance(side, Ours):
        child = side.start()
        child.wait()
        return child.status, [line[3] for line in side.lines()]
    harmed = whole.checkpoints()[0].name
    child = side.start("--trainer.max_steps", "24", "--schedule.decay", "0.3")
    child.wait()
    return int(child.status != 0 or harmed not in side.log.read_text()), []
