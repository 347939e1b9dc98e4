"""The file of training tokens is cut, removed or changed by one byte while a run reads it; then it is put right, and
a run that ended is resumed.

Plain Lightning reads its rows from a memory map of a file, as is usual where they do not fit into memory.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import damage
import torch
from job import SIDES, Job, Ours, Side, compare
from kills import peaceful
from stops import counted, figures, total


def change(file: Path, rng: random.Random) -> None:
    """Another value in one byte, in place."""
    with file.open("r+b") as stream:
        at = rng.randrange(file.stat().st_size)
        stream.seek(at)
        old = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([old ^ rng.randrange(1, 256)]))


HARMS = {"cut": damage.cut, "removed": damage.gone, "changed by one byte": change}


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """Each harm `tries` times on each side."""
    job = Job(folder, steps=114)
    for make in sides:
        whole, _ = peaceful(make, job, folder / f"{make.__name__}_whole")
        for name, harm in HARMS.items():
            yield storm(make, job, whole, name, harm, tries)


def storm(make: type[Side], job: Job, whole: Side, name: str, harm: Callable, tries: int) -> dict:
    """Harm in the first epoch, so that what is harmed is read again in the next."""
    rng, done = random.Random(name), []
    for number in range(tries):
        side = make(job, job.folder / f"{make.__name__}_{name.replace(' ', '_')}_{number}")
        done.append(harmed(side, whole, harm, rng))
    note = (
        f"exit status {counted(one['status'] for one in done)}; the last line names the file {total(done, 'named')} "
        f"times; {total(done, 'silent')} runs went on with changed tokens"
    )
    return {
        "fault": f"file of tokens {name} during the run",
        "side": make.name,
        "tries": tries,
        **figures(done),
        "note": note,
    }


def harmed(side: Side, whole: Side, harm: Callable[[Path, random.Random], None], rng: random.Random) -> dict:
    """One run."""
    cache = side.folder.with_suffix(".cache")
    file = mapped(side.job, cache)
    child = side.start(*(["--data.cache_dir", str(cache)] if isinstance(side, Ours) else []))
    wanted = 4 + rng.randrange(whole.batches() // 4)
    child.wait(until=lambda: side.batches() >= wanted)
    if isinstance(side, Ours):
        file = next(cache.glob("tokens/*/00000.train.tokens"))
    right = file.read_bytes()
    harm(file, rng)
    child.wait()
    child.sweep()
    found = {"status": child.status, "torn": 0, "silent": 0, "named": 0}
    if child.status:
        found["named"] = int(file.name in side.log.read_text().splitlines()[-1])
        file.write_bytes(right)
        mapped(side.job, cache)
        resumed = side.start()
        resumed.wait()
        found["torn"] = int(resumed.status != 0)
    compared = compare(side, whole)
    found["silent"] = int(child.status == 0 and compared["losses_wrong"] > 0)
    return {**compared, **found}


def mapped(job: Job, folder: Path) -> Path:
    """Plain Lightning's rows, from a file of its own from now on."""
    file = folder / "rows"
    folder.mkdir(exist_ok=True)
    if not file.exists():
        file.write_bytes(job.rows[0].numpy().tobytes())
    rows = torch.from_file(str(file), shared=True, size=job.rows[0].numel(), dtype=job.rows[0].dtype)
    job.rows = (rows.view_as(job.rows[0]), *job.rows[1:])
    return file
