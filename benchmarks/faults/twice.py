"""A second run is started in the directory of one that trains: at a random moment, also before the first has written
anything. One of them has to be refused, and the other has to end as if it had been alone."""

import random
from collections.abc import Iterator
from pathlib import Path

from job import SIDES, Job, Side, compare
from kills import over, peaceful
from stops import counted, figures, total


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """`tries` pairs on each side."""
    job = Job(folder, steps=76, workers=0)
    for make in sides:
        whole, start = peaceful(make, job, folder / f"{make.__name__}_whole")
        rng, done = random.Random(7), []
        for number in range(tries):
            folder_of_both = job.folder / f"{make.__name__}_{number}"
            done.append(pair(make(job, folder_of_both), make(job, folder_of_both), whole, start, rng))
        statuses = counted(status for one in done for status in one["statuses"])
        mixed = sum(one["tensors_wrong"] > 0 for one in done)
        yield {
            "fault": "a second run in the same directory", "side": make.name, "tries": tries, **figures(done),
            "note": f"one of two refused {total(done, 'refused')} times; exit status {statuses}; {mixed} times the "
            "newest checkpoint is another run's",
        }  # fmt: skip


def pair(first: Side, second: Side, whole: Side, start: float, rng: random.Random) -> dict:
    """Two runs; the first that was not refused is compared. Torn: it did not reach its end."""
    second.seen, second.log = (file.with_name(f"{file.name}_of_second") for file in (second.seen, second.log))
    child = first.start()
    over(first, child, rng, start, whole.batches())
    other = second.start()
    child.wait()
    other.wait()
    statuses = [child.status, other.status]
    kept = first if child.status == 0 or other.status else second
    refused = int(sorted(statuses) == [0, 2])
    return {**compare(kept, whole), "statuses": statuses, "refused": refused, "torn": int(min(statuses) != 0)}
