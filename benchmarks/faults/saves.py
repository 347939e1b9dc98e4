"""Kill -9 inside saves: a state of tens of megabytes is saved after every step, so that most moments are inside a save.

Plain Lightning writes to the folder for temporary files first and then moves: that is given another file system
(/dev/shm), as on many clusters.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from job import SIDES, Child, Job, Side

MEMORY = Path("/dev/shm")


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """`tries` kills on each side."""
    job = Job(folder, steps=100_000, workers=0, average=False, dim=288, n_layers=4, save_every=1, accumulate=1)
    for make in sides:
        yield storm(make(job, folder / make.__name__), tries)


def storm(side: Side, tries: int) -> dict:
    """Start, wait for a save to begin, kill within the time of two, look at every file; over and over."""
    rng, whole, broken, hurt, inside, unloadable, taken = random.Random(3), set(), set(), set(), 0, 0, 0
    temporary = side.folder.with_name("temporary")
    if MEMORY.is_dir():
        temporary = MEMORY / f"faults-{os.getpid()}"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    pause = 0.5
    while taken < tries:
        before, child = whole, side.start()
        pause = 0.5 * pause + 0.5 * between_saves(side, child)
        child.wait(rng.uniform(0, 2 * pause))
        child.kill()
        taken += 1
        whole = {file.name for file in side.checkpoints() if side.loads(file)}
        broken |= {(file.name, file.stat().st_mtime_ns) for file in side.checkpoints() if file.name not in whole}
        hurt |= {file.name for file in side.checkpoints()} & before - whole - {"last.ckpt"}
        unloadable += int(bool(side.checkpoints()) and side.newest().exists() and side.newest().name not in whole)
        inside += half_written(side, temporary)
        sweep(side, whole)
    temporary.rmdir()
    tempfile.tempdir = None
    size = max(file.stat().st_size for file in side.checkpoints()) / 1e6
    return {
        "fault": "kill -9 inside saves", "side": side.name, "tries": tries, "torn": len(broken), "wrong": len(hurt),
        "newest_unloadable": unloadable, "inside": inside,
        "note": f"{size:.0f} MB each; {inside} kills left a file half-written beside; {unloadable} times the newest "
        "could not be loaded",
    }  # fmt: skip


def sweep(side: Side, whole: set[str]) -> None:
    """Remove what cannot be loaded, as who wants to go on would: plain Lightning starts from no torn file."""
    for file in side.checkpoints():
        if file.name not in whole:
            file.unlink()


def between_saves(side: Side, child: Child) -> float:
    """Seconds from one new checkpoint to the next; returns when the next one has begun to be due."""
    moments = []
    for _ in range(2):
        child.wait(120, until=changed(side, newest_time(side)))
        moments.append(time.monotonic())
    if child.ended():
        raise RuntimeError(f"ended with {child.status}: {side.log.read_text()[-2000:]}")
    return moments[1] - moments[0]


def changed(side: Side, known: int) -> Callable[[], bool]:
    """Asks whether there is a newer checkpoint."""
    return lambda: newest_time(side) != known


def newest_time(side: Side) -> int:
    """When the newest checkpoint was written, by the file system."""
    times = []
    for file in side.checkpoints_unsorted():
        try:
            times.append(file.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
    return max(times, default=0)


def half_written(side: Side, temporary: Path) -> int:
    """1 if the kill left a file of a save; what lies in the temporary folder is swept."""
    known = {".ckpt", ".sha256"}
    folder = side.newest().parent if side.checkpoints() else side.folder
    beside = [file for file in folder.iterdir() if file.is_file() and (file.suffix not in known or file.name[0] == ".")]
    left = list(temporary.iterdir())
    for file in left:
        file.unlink()
    return int(bool(beside or left))
