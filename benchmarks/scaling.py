"""The time of a training step against depth and width, and against the operations counted.

    python benchmarks/scaling.py [--rounds N] [--quick]

prints one JSON line for depth and one for width. Networks of all sizes take a step in turn in one process and one
thread; times are of the processor, medians over rounds. `by_linear` is the time of a depth over that on the straight
line through the least and the greatest one; `by_operations` is how often the time of the least width goes into that of
another, over how often its operations do, and at most 1 where time grows no faster than they.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measuring.cases import Case
from measuring.peer import built, stepping
from measuring.record import say

from lit_small_lm.batch import Batch, Specials

WARM = 2
DEPTHS = {layers: Case(128, layers, 4, 4, 344, 1024, rows=4, length=128) for layers in (12, 24, 48, 64)}
WIDTHS = {
    dim: Case(dim, 4, dim // 32, dim // 32, dim * 8 // 3, 1024, rows=4, length=128) for dim in (96, 192, 384, 768)
}


def rows_of(case: Case) -> Batch:
    """A batch of one document a row."""
    numbers = torch.arange(case.rows)
    tokens = torch.randint(3, case.vocab_size, (case.rows, case.length + 1))
    specials = Specials(vocab_size=case.vocab_size, end=0, pad=1, mask=2)
    return Batch(tokens, numbers[:, None].expand_as(tokens), None, numbers, numbers, specials)


def steps(cases: Mapping[int, Case], rounds: int) -> dict[int, float]:
    """Processor seconds of a step of each network."""
    nets = {size: built("module", case) for size, case in cases.items()}
    taking = {size: (stepping(*parts), rows_of(cases[size])) for size, parts in nets.items()}
    found: dict[int, list[float]] = {size: [] for size in cases}
    for number in range(WARM + rounds):
        for size, (step, batch) in taking.items():
            began = time.process_time()
            step(batch, number)
            found[size].append(time.process_time() - began)
    return {size: statistics.median(seconds[WARM:]) for size, seconds in found.items()}


def by_linear(seconds: Mapping[int, float]) -> dict[int, float]:
    """Each time over that on the line through the first and the last."""
    (least, low), (most, high) = min(seconds.items()), max(seconds.items())
    return {size: value / (low + (high - low) * (size - least) / (most - least)) for size, value in seconds.items()}


def by_operations(seconds: Mapping[int, float], cases: Mapping[int, Case]) -> dict[int, float]:
    """Each time over the least one's, over the same of operations."""
    work = {
        size: case.mflop(sum(p.numel() for p in built("module", case)[0].parameters())) for size, case in cases.items()
    }
    least = min(cases)
    return {size: seconds[size] / seconds[least] / (work[size] / work[least]) for size in cases}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two depths, one round")
    asked = parser.parse_args()
    torch.manual_seed(0)
    depths = {layers: DEPTHS[12]._replace(n_layers=layers) for layers in (1, 2)} if asked.quick else DEPTHS
    rounds = 1 if asked.quick else asked.rounds
    seconds = steps(depths, rounds)
    grown = round(max(seconds.values()) / min(seconds.values()), 2)
    told = {"over": "layers", "step_ms": milliseconds(seconds), "by_linear": rounded(by_linear(seconds))}
    say("scaling", {**told, "grown": grown, "rounds": rounds})
    if asked.quick:
        return
    seconds = steps(WIDTHS, rounds)
    told = {"over": "width", "step_ms": milliseconds(seconds), "by_operations": rounded(by_operations(seconds, WIDTHS))}
    say("scaling", {**told, "rounds": rounds})


def milliseconds(seconds: Mapping[int, float]) -> dict[int, float]:
    """For reading."""
    return {size: round(1000 * value, 1) for size, value in seconds.items()}


def rounded(values: Mapping[int, float]) -> dict[int, float]:
    """For reading."""
    return {size: round(value, 3) for size, value in values.items()}


if __name__ == "__main__":
    main()
