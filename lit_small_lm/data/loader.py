"""Rows into batches, and the loader that hands them out and knows where to go on."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_small_lm.data.packing import Packed
from lit_small_lm.data.plan import EvalPlan, Shares, TrainPlan, Wanted
from lit_small_lm.errors import RunError
from lit_small_lm.plugin import Batch, Specials
from lit_small_lm.signals import left_to_the_parent

State = dict[str, Any]
T = TypeVar("T")
READ_TOGETHER = 1 << 11
"""Positions that are read at a time, where a batch has fewer."""


class Feed(Protocol):
    """Where a loader's batches come from."""

    plan: TrainPlan | EvalPlan | Shares
    """Has a length, and `accumulate`."""

    def batches(self, start: int, state: State) -> Iterator[tuple[Batch, State]]:
        """The batches from number `start` on, each with what a later process needs to go on after it.

        `state` is what came with the batch before `start`; empty at the beginning.
        """


class Rows(Dataset):
    """The rows of a split: those of its components, numbered one after another."""

    def __init__(self, components: Sequence[Packed], specials: Specials) -> None:
        self.components, self.specials = components, specials
        self._first = np.cumsum([0, *map(len, components)]).tolist()
        self.masked = not all(packed.full for packed in components)
        """Whether batches need a loss mask."""
        self.scored = sum(packed.scored for packed in components)
        """Tokens that are the target of some position."""

    def __len__(self) -> int:
        return self._first[-1]

    def place(self, row: int) -> tuple[Packed, int] | None:
        """The component of a row and its number there; None for a padding row."""
        if row < 0:
            return None
        component = bisect.bisect_right(self._first, row) - 1
        return self.components[component], row - self._first[component]

    def __getitems__(self, wanted: Sequence[Wanted]) -> Batch | RunError:
        """A batch; what cannot be read is passed on to the process that can say so."""
        places = [self.place(item.row) for item in wanted]
        try:
            return assemble(places, wanted, self.components[0].seq_len, self.specials, self.masked)
        except RunError as error:
            return error


def assemble(
    places: Sequence[tuple[Packed, int] | None],
    wanted: Sequence[Wanted],
    seq_len: int,
    specials: Specials,
    masked: bool,
) -> Batch:
    """Write rows side by side; `masked`: with a loss mask. All rows are cut into as many pieces as the first."""
    tokens = np.full((len(places), seq_len + 1), specials.filler, dtype=np.int64)  # (B, T+1)
    doc_ids = np.full_like(tokens, -1)
    for place, row_tokens, row_documents in zip(places, tokens, doc_ids, strict=True):
        if place is not None:
            place[0].write(place[1], row_tokens, row_documents)
    pieces = wanted[0].pieces
    mask = torch.from_numpy(_counted(places, doc_ids)).reshape(-1, seq_len // pieces) if masked else None
    rows, slots = np.array([(item.row, item.slot) for item in wanted], dtype=np.int64).T
    slots = slots[:, None] * pieces + np.arange(pieces)  # (B, pieces)
    return Batch(
        tokens=_cut(torch.from_numpy(tokens), pieces),
        doc_ids=_cut(torch.from_numpy(doc_ids), pieces),
        loss_mask=mask,
        sample_ids=torch.from_numpy(rows.repeat(pieces)),
        slots=torch.from_numpy(slots.ravel()),
        specials=specials,
    )


def _counted(places: Sequence[tuple[Packed, int] | None], doc_ids: np.ndarray) -> np.ndarray:
    """(B, T) positions whose target counts: those of a document, except where it is given."""
    counted = doc_ids[:, :-1] >= 0
    for place, row in zip(places, counted, strict=True):
        given = None if place is None else place[0].given(place[1])
        if given is not None:
            row &= ~given
    return counted


def _cut(rows: Tensor, pieces: int) -> Tensor:
    """(B, T+1) -> (B * pieces, T / pieces + 1): the look-ahead of a piece is the first token of the next."""
    if pieces == 1:
        return rows
    width = (rows.shape[1] - 1) // pieces
    return rows.unfold(1, width + 1, width).reshape(-1, width + 1)


class PreparedFeed:
    """Batches of rows that can be read in any order, by `workers` processes (0: this one)."""

    def __init__(self, rows: Rows, plan: TrainPlan | EvalPlan, workers: int = 0) -> None:
        self.rows, self.plan, self.workers = rows, plan, workers

    def batches(self, start: int, state: State) -> Iterator[tuple[Batch, State]]:
        for batch in raised(iter(self._loader(start)) if self.workers else self._read_here(start)):
            yield batch, {}

    def _loader(self, start: int) -> DataLoader:
        settings = {"num_workers": self.workers, "collate_fn": passed_on, "worker_init_fn": left_to_the_parent}
        return DataLoader(self.rows, batch_sampler=_Sampler(self.plan, start), **settings)

    def _read_here(self, start: int) -> Iterator[Batch | RunError]:
        """Small batches several at a time: a processor that has trained in between begins each with an empty cache. How
        many, their first one says."""
        wanted = self.plan.batches(start)
        for first in wanted:
            more = READ_TOGETHER // (len(first) * self.rows.components[0].seq_len) - 1
            yield from [self.rows.__getitems__(rows) for rows in (first, *itertools.islice(wanted, max(0, more)))]


class BatchLoader:
    """Batches of a feed, with a length and a state: how many batches have been handed out."""

    def __init__(self, feed: Feed, *, pin: bool = False) -> None:
        self.feed, self.pin = feed, pin
        self.handed_out = 0
        self._state: State = {}
        self._resume_at = 0

    def __len__(self) -> int:
        return len(self.feed.plan)

    def __iter__(self) -> Iterator[Batch]:
        start, state = self._resume_at, self._state if self._resume_at else {}
        self._resume_at = 0
        for number, (batch, after) in enumerate(self.feed.batches(start, state), start + 1):
            self.handed_out, self._state = number, after
            yield batch.pin_memory() if self.pin else batch

    def state_dict(self) -> State:
        """Optimizer steps' worth of batches handed out so far, and what the feed needs to go on from there."""
        return {"steps": self.handed_out // self.feed.plan.accumulate, "feed": self._state}

    def load_state_dict(self, state: State) -> None:
        self._resume_at = self.handed_out = state["steps"] * self.feed.plan.accumulate
        self._state = state["feed"]


class _Sampler:
    def __init__(self, plan: TrainPlan | EvalPlan, start: int) -> None:
        self.plan, self.start = plan, start

    def __len__(self) -> int:
        return len(self.plan) - self.start

    def __iter__(self) -> Iterator[list[Wanted]]:
        return self.plan.batches(self.start)


def passed_on(item: T) -> T:
    """What a DataLoader does to a batch that needs no collating."""
    return item


def raised(items: Iterator[T | Exception]) -> Iterator[T]:
    """Items of a loader; an error that another thread or process passed on is raised here, as it was."""
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item
