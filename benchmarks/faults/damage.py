"""The newest checkpoint cut to a random length, or with one bit flipped at a random place, or gone; then a resume."""

import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

from job import SIDES, Job, Ours, Side

from lit_small_lm.checkpoint import newest


def run(folder: Path, tries: int, sides=SIDES) -> list[dict]:
    """Each kind of damage, `tries` times on each side; a missing file once."""
    job = Job(folder, steps=20, workers=0)
    found = []
    for make in sides:
        whole = make(job, folder / f"{make.__name__}_whole")
        whole.start().wait()
        if make is Ours:
            whole.newest().unlink()  # the run is then one that was killed after step 15
        ended = make(Job(folder, steps=20 if make is Ours else 24, workers=0), whole.folder)
        found += [storm(ended, "cut", cut, tries), storm(ended, "one bit flipped", flip, tries)]
        found.append(storm(ended, "gone", gone, 1))
    return found


def cut(file: Path, rng: random.Random) -> None:
    """Keep a random number of its bytes, not all of them."""
    os.truncate(file, rng.randrange(file.stat().st_size))


def flip(file: Path, rng: random.Random) -> None:
    """One bit, anywhere."""
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def gone(file: Path, rng: random.Random) -> None:
    """Away with it; of ours its manifest stays."""
    file.unlink()


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
    note = f"exit status 0: {ok} times"
    if right is None:
        note = f"the one before used {ok} times, the damaged one named {sum(named for _, named in done)} times"
    silent = sum(status == 0 and losses != right for status, losses in done) if right else 0
    return {
        "fault": f"newest checkpoint {name}", "side": whole.name, "tries": tries, "torn": tries - ok, "wrong": silent,
        "note": note,
    }  # fmt: skip


def copied(whole: Side, name: str) -> Side:
    """The run, elsewhere."""
    folder = whole.folder.with_name(f"{type(whole).__name__}_{name}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.folder, folder)
    side = type(whole)(whole.job, folder)
    side.seen.unlink(missing_ok=True)
    side.log.unlink(missing_ok=True)
    return side


def asked(whole: Side, side: Side) -> tuple[int, bool]:
    """0 if the checkpoint before is taken, and whether the damaged one is named."""
    harmed, before = whole.checkpoints()[:2]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        taken = newest(side.folder)[0]
    named = any(harmed.name in str(one.message) for one in said)
    return int(taken.name != before.name), named


def resumed(whole: Side, side: Side) -> tuple[int, Any]:
    """Exit status of a resume by the command; of ours whether the damaged file was named, of Lightning's its losses."""
    child = side.start()
    child.wait()
    if isinstance(side, Ours):
        return child.status, whole.newest().name in side.log.read_text()
    return child.status, [line[3] for line in side.lines()]
