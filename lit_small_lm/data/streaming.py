"""Training without a store: documents are tokenised while training goes on.

Every component is read in order, in windows of about a million tokens. The rows of a window are shuffled by (seed,
component, epoch, window), and the components interleaved as prepared ones are. Where each window begins is kept in
checkpoints, so that a resumed run builds the same window again and goes on inside it. Every process reads the whole
stream and keeps its share of the rows: the order does not depend on how many there are.
"""

import dataclasses
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from lit_small_lm.data.encoding import Cut, ReadTo, text_batches
from lit_small_lm.data.given import refuse_given
from lit_small_lm.data.loader import State, assemble, passed_on, raised
from lit_small_lm.data.mixture import Interleaving, naming
from lit_small_lm.data.packing import ArrayStream, Packed, Packing, pack
from lit_small_lm.data.plan import Shares, Wanted
from lit_small_lm.data.splits import Splits
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Batch, Component, Encoder
from lit_small_lm.signals import left_to_the_parent

WINDOW = 1 << 20
"""Tokens after which a window is closed, at the end of a batch of documents."""
AHEAD = 1 << 18
"""Positions that are made ready before training asks for them."""


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where a window of a component begins."""

    epoch: int = 0
    window: int = 0
    """Its number in the epoch."""
    part: int = 0
    document: int = 0
    row: int = 0
    """The number of its first row, among all rows of the component since training began."""
    documents: int = 0
    """Training documents of the epoch before it."""


class Window(NamedTuple):
    """Rows in the order in which they are trained on."""

    cursor: Cursor
    packed: Packed
    order: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the text of a component becomes rows."""

    component: Component
    encoder: Encoder
    seq_len: int
    packing: Packing
    seed: int
    first_document: int = 0
    """The number of the component's first document."""

    def windows(self, cursor: Cursor) -> Iterator[Window]:
        """The windows of a component from `cursor` on, epoch after epoch, without end.

        Raises:
            RequestError: it holds no training document.
        """
        with naming(self.component.name):
            splits = Splits.of(self.component.source)
            while True:
                begins = cursor
                for documents, position in self._epoch(splits, cursor):
                    window = self._window(documents, cursor)
                    yield window
                    row, count = cursor.row + len(window.packed), cursor.documents + len(documents)
                    cursor = Cursor(cursor.epoch, cursor.window + 1, *position, row, count)
                if cursor == begins == Cursor(epoch=cursor.epoch, row=cursor.row):
                    raise RequestError("data.source: it holds no training document")
                cursor = Cursor(epoch=cursor.epoch + 1, row=cursor.row)

    def _epoch(self, splits: Splits, start: Cursor) -> Iterator[tuple[list[np.ndarray], ReadTo]]:
        """Documents of each window of what is left of an epoch, and where reading goes on after it."""
        documents: list[np.ndarray] = []
        for batch in text_batches(self.component.source, splits, ReadTo(start.part, start.document)):
            documents += self._encoded([cut for cut in batch.cuts if cut.split == "train"], documents)
            if batch.whole and sum(map(len, documents)) >= WINDOW:
                yield documents, batch.position
                documents = []
        if documents:
            yield documents, batch.position

    def _encoded(self, cuts: Sequence[Cut], before: list[np.ndarray]) -> list[np.ndarray]:
        """The ids of each document; a run of a long document is added to the document it belongs to."""
        found: list[np.ndarray] = []
        refuse_given(any(cut.given for cut in cuts))
        for cut, ids in zip(cuts, self.encoder.encode([cut.text for cut in cuts]), strict=True):
            if cut.begins:
                found.append(np.array(ids, dtype=np.int64))
            else:
                where = found or before
                where[-1] = np.append(where[-1], np.array(ids, dtype=np.int64))
        return found

    def _window(self, documents: list[np.ndarray], cursor: Cursor) -> Window:
        stream = ArrayStream(documents, self.encoder.specials.end)
        first = self.first_document + cursor.documents
        packed = pack(stream, self.seq_len, self.packing, first, rest="pad")
        key = generator(self.seed, "order", self.component.name, cursor.epoch, cursor.window)
        return Window(cursor, packed, torch.randperm(len(packed), generator=key).numpy())


class RowStream:
    """The rows of a component one after another, from row `row` on."""

    def __init__(self, reader: Reader, cursor: Cursor, row: int) -> None:
        self._windows = reader.windows(cursor)
        self.window = next(self._windows)
        self.row = row

    def take(self) -> tuple[Packed, int]:
        """The next row: what holds it, and its number there."""
        while self.row >= self.window.cursor.row + len(self.window.packed):
            self.window = next(self._windows)
        place = self.window.packed, int(self.window.order[self.row - self.window.cursor.row])
        self.row += 1
        return place


class StreamedFeed:
    """Batches of documents that are tokenised on the way.

    Args:
        readers: one for each component.
        shares: what of every step this process works on.
        workers: 0: tokenise in a thread of this process; more: in one process of its own.
    """

    def __init__(self, readers: Sequence[Reader], shares: Shares, workers: int = 0) -> None:
        self.readers, self.plan, self.workers = readers, shares, workers

    def batches(self, start: int, state: State) -> Iterator[tuple[Batch, State]]:
        """See `Feed`. Raises RequestError or RunError where documents cannot be read."""
        pace = self.plan.pace
        rows = max(1, pace.batch_size // (self.plan.accumulate * self.plan.world_size))
        depth = max(2, AHEAD // (rows * pace.seq_len))
        made = _Batches(self, start, state)
        if not self.workers:
            return raised(ahead(iter(made), depth))
        settings = {"batch_size": None, "num_workers": 1, "prefetch_factor": depth, "collate_fn": passed_on}
        return raised(iter(DataLoader(made, worker_init_fn=_quiet, **settings)))

    def make(self, start: int, state: State) -> Iterator[tuple[Batch, State]]:
        """The batches, made one by one when they are asked for."""
        shares, seq_len = self.plan, self.readers[0].seq_len
        fills = state["fills"] if state else self._fills()
        weights = [reader.component.weight / fill for reader, fill in zip(self.readers, fills, strict=True)]
        interleaving = Interleaving(weights)
        streams = self._streams(interleaving.counts(shares.rows_before(start // shares.accumulate)), state)
        for number in range(start, len(shares)):
            step, mine = shares.share(number)
            count = len(mine) * shares.world_size
            first = number % shares.accumulate * count
            at = shares.rows_before(step) + first
            component, _ = interleaving.window(at, at + count)
            if shares.left_out:  # a stretch may have been jumped over
                for stream, row in zip(streams, interleaving.counts(at).tolist(), strict=True):
                    stream.row = row
            places = [streams[c].take() for c in component.tolist()][mine.start - first : mine.stop - first]
            wanted = [Wanted(at - first + slot, slot, shares.pace.pieces(step)) for slot in mine]
            batch = assemble(places, wanted, seq_len, self.readers[0].encoder.specials, masked=True)
            cursors = [list(dataclasses.astuple(stream.window.cursor)) for stream in streams]
            yield batch, {"fills": fills, "cursors": cursors, "made_for": self._made_for()}

    def _fills(self) -> list[float]:
        """Tokens by position in each component's first window: what is padded has to be made up for by more rows."""
        if len(self.readers) == 1 or self.readers[0].packing == "concatenate":
            return [1.0] * len(self.readers)
        packed = [next(reader.windows(Cursor())).packed for reader in self.readers]
        return [part.scored / (len(part) * part.seq_len) for part in packed]

    def _streams(self, counts: np.ndarray, state: State) -> list[RowStream]:
        cursors = [Cursor(*values) for values in state["cursors"]] if state else [Cursor()] * len(self.readers)
        if state and state["made_for"] != self._made_for():  # rows are others now: go on with the text at hand
            cursors = [dataclasses.replace(c, row=int(n)) for c, n in zip(cursors, counts, strict=True)]
        return [
            RowStream(reader, cursor, int(count))
            for reader, cursor, count in zip(self.readers, cursors, counts, strict=True)
        ]

    def _made_for(self) -> list[Any]:
        """What the rows of a window, and the order of components, depend on; changed by a resume, they are others."""
        pace, reader = self.plan.pace, self.readers[0]
        return [
            reader.seq_len,
            reader.packing,
            pace.batch_size,
            pace.warmup.batch_size,
            WINDOW,
            *((reader.component.name, reader.component.weight) for reader in self.readers),
        ]


class _Batches(IterableDataset):
    """The batches of a feed; an error is passed on as the last item."""

    def __init__(self, feed: StreamedFeed, start: int, state: State) -> None:
        self.feed, self.start, self.state = feed, start, state

    def __iter__(self) -> Iterator[tuple[Batch, State] | Exception]:
        try:
            yield from self.feed.make(self.start, self.state)
        except Exception as error:
            yield error


def _quiet(worker: int) -> None:
    left_to_the_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns of every fork


def ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """The items of an iterator that runs in a thread of its own, at most `depth` of them ahead."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped, last = threading.Event(), object()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        if all(put(item) for item in items):
            put(last)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not last:
            yield item
    finally:
        stopped.set()
