"""Which rows every optimizer step takes, and how long they are: a pure function of the step.

Neither loader workers nor processes, accumulation or a resume change it, because nothing is remembered: how many rows
came before a step follows from the step, which components they belong to from their number (`Interleaving`), and which
row of a component is next from (seed, component, epoch).
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from lit_small_lm.data.mixture import Interleaving
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Spec, setting

DOUBLINGS = 3
BLOCK = 4096
"""Rows that are put in order at once."""


@dataclass(frozen=True, kw_only=True)
class Warmup(Spec):
    """A run that begins with smaller batches or shorter rows; beside the warm-up of the learning rate."""

    batch_size: int = setting(0, low=0, unit="steps")
    """Steps over which the batch doubles three times, from an eighth up to its full size; 0: full from the start."""
    seq_len: int = setting(0, low=0, unit="steps")
    """Steps over which the row length doubles three times, from seq_len/8; rows are cut, none of their tokens is lost,
    and a step has as many tokens as later (arXiv 2108.06084); 0: full from the start."""


class Wanted(NamedTuple):
    """A row to load."""

    row: int
    """Its number in the split, -1 for a padding row."""
    slot: int
    """See `Batch.slots`."""
    pieces: int = 1
    """Into how many shorter rows it is cut."""


@dataclass(frozen=True)
class Pace:
    """Rows and tokens of every optimizer step, over all processes and accumulated batches.

    Raises:
        RequestError: a warm-up whose batch or row cannot be halved three times.
    """

    batch_size: int
    seq_len: int
    warmup: Warmup = Warmup()

    def __post_init__(self) -> None:
        for key in ("batch_size", "seq_len"):
            value, least = getattr(self, key), 1 << DOUBLINGS
            if getattr(self.warmup, key) and value % least:
                raise RequestError(
                    f"data.warmup.{key}: begins with an eighth of data.{key}, which is {value}; allowed: multiples of "
                    f"{least}, or no warm-up"
                )

    def rows(self, step: int) -> int:
        """Rows of step `step` (from 0)."""
        return self.batch_size >> DOUBLINGS - _stage(step, self.warmup.batch_size)

    def pieces(self, step: int) -> int:
        """Into how many shorter rows each row of a step is cut."""
        return 1 << DOUBLINGS - _stage(step, self.warmup.seq_len)

    def rows_before(self, step: int) -> int:
        """Rows of all steps before `step`."""
        length = self.warmup.batch_size
        edges = [-(-stage * length // DOUBLINGS) for stage in range(DOUBLINGS + 1)]
        smaller = sum(
            (min(max(step, low), high) - low) * (self.batch_size >> DOUBLINGS - stage)
            for stage, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
        )
        return smaller + max(0, step - length) * self.batch_size

    def steps_reaching(self, rows: int) -> int:
        """The fewest steps that take at least `rows` rows."""
        most = self.warmup.batch_size + rows // self.batch_size + 2
        return bisect.bisect_left(range(most), rows, key=self.rows_before)

    def steps_within(self, rows: int) -> int:
        """The most steps that take no more than `rows` rows, at least one."""
        most = self.warmup.batch_size + rows // self.batch_size + 2
        return max(1, bisect.bisect_right(range(most), rows, key=self.rows_before) - 1)

    def steps_of_tokens(self, tokens: int) -> int:
        """The fewest steps with at least `tokens` tokens."""
        return self.steps_reaching(-(-tokens // self.seq_len))

    def check_shares(self, processes: int, accumulate: int) -> None:
        """Raise RequestError if the rows of some step cannot be shared out."""
        smallest, parts = self.rows(0), processes * accumulate
        if smallest % parts:
            begins = f"; data.warmup.batch_size begins with {smallest}" if smallest != self.batch_size else ""
            allowed = parts * self.batch_size // smallest
            raise RequestError(
                f"data.batch_size: {self.batch_size} is not divisible by {processes} processes x {accumulate} "
                f"accumulated batches{begins}; allowed: multiples of {allowed}"
            )


def _stage(step: int, length: int) -> int:
    """How often the warm-up over `length` steps has doubled by `step`."""
    return min(DOUBLINGS, step * DOUBLINGS // length) if length else DOUBLINGS


class RowOrder:
    """Which row of the training split comes n-th; rows of all components are numbered one after another.

    Args:
        rows: how many rows each component has.
        interleaving: which component the n-th row comes from.
        names: of the components; a component keeps its order when others join it.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[int], interleaving: Interleaving, names: Sequence[str], seed: int) -> None:
        self.counts, self.interleaving, self.names, self.seed = rows, interleaving, names, seed
        self._first = np.cumsum([0, *rows])
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}
        self._block = (-1, np.empty(0, dtype=np.int64))

    def rows(self, first: int, last: int) -> list[int]:
        """The rows from `first` to `last` (exclusive) of the order."""
        found: list[int] = []
        while first < last:
            block, at = divmod(first, BLOCK)
            stop = min(BLOCK, at + last - first)
            found += self._rows_of(block)[at:stop].tolist()
            first += stop - at
        return found

    def _rows_of(self, block: int) -> np.ndarray:
        if self._block[0] != block:
            component, number = self.interleaving.window(block * BLOCK, (block + 1) * BLOCK)
            found = np.empty(BLOCK, dtype=np.int64)
            for index, rows in enumerate(self.counts):
                here = component == index
                epochs, places = np.divmod(number[here], rows)
                picked = [self._order(index, int(e))[places[epochs == e]] for e in np.unique(epochs)]
                found[here] = np.concatenate([np.empty(0, dtype=np.int64), *picked]) + self._first[index]
            self._block = (block, found)
        return self._block[1]

    def _order(self, component: int, epoch: int) -> np.ndarray:
        held = self._epochs.get(component)
        if held is None or held[0] != epoch:
            key = generator(self.seed, "order", self.names[component], epoch)
            held = self._epochs[component] = (epoch, torch.randperm(self.counts[component], generator=key).numpy())
        return held[1]


@dataclass(frozen=True)
class Shares:
    """What of every optimizer step one process works on, batch by batch.

    Raises:
        RequestError: the rows of a step cannot be shared out.
    """

    pace: Pace
    accumulate: int
    rank: int
    world_size: int
    steps: int
    left_out: tuple[tuple[int, int], ...] = ()
    """(first row, how many) of each stretch of rows that no step takes, in order."""

    def __post_init__(self) -> None:
        self.pace.check_shares(self.world_size, self.accumulate)

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def rows_before(self, step: int) -> int:
        """The row of the order that a step begins with."""
        row = self.pace.rows_before(step)
        for first, count in self.left_out:
            row += count if row >= first else 0
        return row

    def share(self, number: int) -> tuple[int, range]:
        """The optimizer step of a batch of this process, and its slots among the rows of that step."""
        step, part = divmod(number, self.accumulate)
        size = self.pace.rows(step) // (self.accumulate * self.world_size)
        first = (part * self.world_size + self.rank) * size
        return step, range(first, first + size)


@dataclass(frozen=True)
class TrainPlan:
    """Which rows a process trains on, in which order."""

    shares: Shares
    order: RowOrder

    @property
    def accumulate(self) -> int:
        return self.shares.accumulate

    def __len__(self) -> int:
        return len(self.shares)

    def batches(self, start: int) -> Iterator[list[Wanted]]:
        """The rows of every batch of this process, from batch number `start` on."""
        for number in range(start, len(self)):
            step, slots = self.shares.share(number)
            at, pieces = self.shares.rows_before(step), self.shares.pace.pieces(step)
            rows = self.order.rows(at + slots.start, at + slots.stop)
            yield [Wanted(row, slot, pieces) for row, slot in zip(rows, slots, strict=True)]


@dataclass(frozen=True)
class EvalPlan:
    """Every row of a split once, dealt out to the processes; short batches are filled with padding rows."""

    rows: int
    batch_size: int
    """Rows of one batch of one process."""
    rank: int
    world_size: int
    accumulate: ClassVar[int] = 1

    def __len__(self) -> int:
        return -(-self.rows // (self.batch_size * self.world_size))

    def batches(self, start: int) -> Iterator[list[Wanted]]:
        """The rows of every batch of this process, from batch number `start` on."""
        for number in range(start, len(self)):
            first = (number * self.world_size + self.rank) * self.batch_size
            rows = range(first, first + self.batch_size)
            yield [Wanted(row if row < self.rows else -1, slot=row) for row in rows]
