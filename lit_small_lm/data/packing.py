"""Rows of packed documents, and the order they come in.

A row is a window of the token stream; which row comes when is a function of (seed, epoch, index of the sample in the
global batch sequence), so the number of loader workers, ranks and accumulation steps does not change it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_small_lm.data.store import SplitTokens
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Batch, Specials


class Wanted(NamedTuple):
    """A row to load: its number (-1: padding) and its slot (see `Batch.slots`)."""

    row: int
    slot: int


class Rows(Dataset):
    """Windows of `seq_len` tokens and one look-ahead; the last one of an evaluated split is padded."""

    def __init__(self, split: SplitTokens, seq_len: int, specials: Specials, *, whole: bool) -> None:
        self.split, self.seq_len, self.specials, self.whole = split, seq_len, specials, whole
        self.scored = len(split.tokens) - 1
        """Tokens of the split that are some position's target."""

    def __len__(self) -> int:
        return self.scored // self.seq_len if self.whole else -(-self.scored // self.seq_len)

    def __getitems__(self, wanted: Sequence[Wanted]) -> Batch:
        starts = np.array([item.row for item in wanted])[:, None] * self.seq_len
        index = starts + np.arange(self.seq_len + 1)  # (B, T+1)
        real = (index >= 0) & (index <= self.scored) & (starts >= 0)
        index = np.where(real, index, 0)
        docs = np.searchsorted(self.split.starts, index, side="right") - 1
        tokens = np.where(real, self.split.tokens[index], self.specials.pad)
        mask = None if self.whole else torch.from_numpy(real[:, 1:])
        return Batch(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            doc_ids=torch.from_numpy(np.where(real, docs, -1)),
            loss_mask=mask,
            sample_ids=torch.tensor([item.row for item in wanted]),
            slots=torch.tensor([item.slot for item in wanted]),
            specials=self.specials,
        )


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """Which rows each rank trains on, in which order, over `steps` optimizer steps."""

    rows: int
    seed: int
    batch_size: int
    """Rows of one optimizer step, over all ranks and accumulation."""
    accumulate: int
    rank: int
    world_size: int
    steps: int

    def __post_init__(self) -> None:
        parts = self.accumulate * self.world_size
        if self.batch_size % parts:
            raise RequestError(
                f"data.batch_size: {self.batch_size} is not divisible by {self.world_size} processes x "
                f"{self.accumulate} accumulated batches; allowed: multiples of {parts}"
            )

    def __len__(self) -> int:
        return self.steps * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        return self.rows // self.batch_size

    def batches(self, start: int) -> Iterator[list[Wanted]]:
        """The rows of every batch of this rank, from batch number `start` on."""
        size = self.batch_size // (self.accumulate * self.world_size)
        epoch, order = -1, torch.empty(0)
        for number in range(start, len(self)):
            step, part = divmod(number, self.accumulate)
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self.rows, generator=generator(self.seed, "order", epoch))
            first = (part * self.world_size + self.rank) * size
            at = (step % self.steps_per_epoch) * self.batch_size
            yield [Wanted(int(order[at + slot]), slot) for slot in range(first, first + size)]


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Every row of a split once, dealt out to the ranks; short batches are filled with padding rows."""

    rows: int
    batch_size: int
    """Rows of one batch of one rank."""
    rank: int
    world_size: int
    accumulate: ClassVar[int] = 1

    def __len__(self) -> int:
        return -(-self.rows // (self.batch_size * self.world_size))

    def batches(self, start: int) -> Iterator[list[Wanted]]:
        for number in range(start, len(self)):
            first = (number * self.world_size + self.rank) * self.batch_size
            rows = range(first, first + self.batch_size)
            yield [Wanted(row if row < self.rows else -1, slot=row) for row in rows]


class BatchLoader:
    """Batches of a plan, with a length and a state: how many batches have been handed out."""

    def __init__(self, rows: Rows, plan: TrainPlan | EvalPlan, workers: int = 0, *, pin: bool = False) -> None:
        self.rows, self.plan, self.workers, self.pin = rows, plan, workers, pin
        self.handed_out = 0
        self._resume_at = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        start, self._resume_at = self._resume_at, 0
        batches = _Sampler(self.plan, start)
        loader = DataLoader(
            self.rows, batch_sampler=batches, num_workers=self.workers, collate_fn=_same, pin_memory=self.pin
        )
        for number, batch in enumerate(loader, start + 1):
            self.handed_out = number
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Optimizer steps' worth of batches handed out so far: what a resume continues from."""
        return {"steps": self.handed_out // self.plan.accumulate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume_at = self.handed_out = state["steps"] * self.plan.accumulate


class _Sampler:
    def __init__(self, plan: TrainPlan | EvalPlan, start: int) -> None:
        self.plan, self.start = plan, start

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __iter__(self) -> Iterator[list[Wanted]]:
        return self.plan.batches(self.start)


def _same(batch: Batch) -> Batch:
    return batch
