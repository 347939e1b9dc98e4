"""Documents into rows: plain concatenation, or best fit without cutting a document that fits (arXiv 2404.10830).

A stream is documents one after another, each begun by the end token, and a last end token. A row of T positions has a
look-ahead of one token, so that each of its positions has a target. Whichever packing is chosen, every token of the
stream is the target of exactly one position, and only tokens of its own document stand before it.

Documents of which a part is given are never cut, whichever packing is chosen: a response without its prompt would be
another task. Those longer than a row are left out, and counted.
"""

import abc
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np

from lit_small_lm.data.given import NOTHING_GIVEN, of_targets

Packing = Literal["concatenate", "best_fit"]
GROUP = 1 << 16
"""Documents that are packed together: more of them would fit no better."""


class Stream(Protocol):
    """The tokens of documents; `TokenStore.split` gives one."""

    length: int
    """Tokens, the last end token included."""
    starts: np.ndarray
    """(documents,) where each document begins."""
    given: np.ndarray
    """(R, 2) runs of tokens that are given: not predicted, masked or scored."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids from `start` to `stop` (exclusive)."""


class ArrayStream:
    """A stream held in memory.

    Args:
        documents: ids of each document, without the end token.
        end: the end token.
        given: (R, 2) runs of the stream that are given.
    """

    def __init__(self, documents: list[np.ndarray], end: int, given: np.ndarray = NOTHING_GIVEN) -> None:
        self.given = given
        last = np.array([end], dtype=np.int64)
        self.tokens = np.concatenate([part for ids in documents for part in (last, ids)] + [last])
        sizes = np.array([len(ids) + 1 for ids in documents], dtype=np.int64)
        self.length, self.starts, self.documents = len(self.tokens), np.cumsum(sizes) - sizes, len(documents)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


class Packed(abc.ABC):
    """Rows of `seq_len` positions and a look-ahead, made of a stream."""

    full: bool
    """Whether every position of every row has a target."""
    scored: int
    """Positions of all rows that have a target."""

    def __init__(self, stream: Stream, seq_len: int, first_document: int = 0) -> None:
        self.stream, self.seq_len = stream, seq_len
        self.first_document = first_document
        """The number of the stream's first document."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def write(self, row: int, tokens: np.ndarray, doc_ids: np.ndarray) -> None:
        """Write a row into `tokens` and `doc_ids` (T+1,), which come filled with padding (-1 in `doc_ids`)."""

    def given(self, row: int) -> np.ndarray | None:
        """(T,) positions of a row whose target is given; None: there are none in this packing."""
        return None


class Concatenated(Packed):
    """Windows of the stream, one after another.

    Args:
        rest: what becomes of the last window, which is rarely whole: "drop" leaves it out, "pad" fills it up.
    """

    def __init__(
        self, stream: Stream, seq_len: int, first_document: int = 0, rest: Literal["drop", "pad"] = "drop"
    ) -> None:
        super().__init__(stream, seq_len, first_document)
        rows, left = divmod(stream.length - 1, seq_len)
        self.full = rest == "drop" or not left
        self._rows = rows if self.full else rows + 1
        self.scored = rows * seq_len if self.full else stream.length - 1
        edges = np.arange(self._rows + 1, dtype=np.int64) * seq_len
        self._documents = np.searchsorted(stream.starts, edges, side="right") - 1
        """The document at the first position of each row, which is the look-ahead of the row before."""

    def __len__(self) -> int:
        return self._rows

    def write(self, row: int, tokens: np.ndarray, doc_ids: np.ndarray) -> None:
        first = row * self.seq_len
        ids = self.stream.read(first, min(first + self.seq_len + 1, self.stream.length))
        tokens[: len(ids)] = ids
        low, high = self._documents[row : row + 2].tolist()
        at = 0
        for document in range(low, high):
            edge = int(self.stream.starts[document + 1]) - first
            doc_ids[at:edge] = document + self.first_document
            at = edge
        last = len(ids) if len(ids) > self.seq_len else len(ids) - 1  # the stream's last token has no target
        doc_ids[at:last] = high + self.first_document


class Segments(NamedTuple):
    """Pieces of documents in the order of the rows they lie in."""

    rows: np.ndarray
    """(rows + 1,) where each row's segments begin, and the number of all."""
    starts: np.ndarray
    stops: np.ndarray
    """From where to where in the stream; the target of the last position is the token at `stop`."""
    documents: np.ndarray


class BestFit(Packed):
    """Rows filled with whole documents and with the ends of those that are longer than a row.

    The token after a segment is the target of its last position. A segment that begins inside a document cannot offer
    the end token that the segment before it needs there, so the two are one position without a document apart.

    Args:
        long: what becomes of a document that is longer than a row: "cut", or "leave_out" of the rows.
    """

    full = False

    def __init__(
        self, stream: Stream, seq_len: int, first_document: int = 0, long: Literal["cut", "leave_out"] = "cut"
    ) -> None:
        super().__init__(stream, seq_len, first_document)
        edges = np.append(stream.starts, stream.length - 1)
        if long == "leave_out":
            sizes = sizes_of(stream)
            self.scored = int(sizes[sizes <= seq_len].sum())
            self.segments = best_fit(edges, seq_len, longest=seq_len)
        else:
            self.scored = stream.length - 1
            self.segments = best_fit(edges, seq_len)

    def __len__(self) -> int:
        return len(self.segments.rows) - 1

    def write(self, row: int, tokens: np.ndarray, doc_ids: np.ndarray) -> None:
        for at, start, stop, document in self._placed(row):
            ids = self.stream.read(start, stop + 1)
            tokens[at : at + len(ids)] = ids
            doc_ids[at : at + stop - start] = document + self.first_document

    def given(self, row: int) -> np.ndarray | None:
        if not len(self.stream.given):
            return None
        found = np.zeros(self.seq_len, dtype=bool)
        for at, start, stop, _ in self._placed(row):
            found[at : at + stop - start] = of_targets(self.stream.given, start, stop)
        return found

    def _placed(self, row: int) -> Iterator[tuple[int, int, int, int]]:
        """The segments of a row: where each begins in it, its start and stop in the stream, and its document."""
        here, at = slice(*self.segments.rows[row : row + 2].tolist()), 0
        pieces = zip(*(part[here].tolist() for part in self.segments[1:]), strict=True)
        for start, stop, document in pieces:
            at += at > 0 and start > self.stream.starts[document]
            yield at, start, stop, document
            at += stop - start


def pack(
    stream: Stream, seq_len: int, packing: Packing, first_document: int = 0, rest: Literal["drop", "pad"] = "drop"
) -> Packed:
    """The rows of a stream; `rest` is what becomes of the last window under plain concatenation.

    Documents of which something is given are packed whole, by best fit, and those longer than a row left out.
    """
    if len(stream.given):
        return BestFit(stream, seq_len, first_document, long="leave_out")
    if packing == "best_fit":
        return BestFit(stream, seq_len, first_document)
    return Concatenated(stream, seq_len, first_document, rest)


def sizes_of(stream: Stream) -> np.ndarray:
    """(documents,) positions that each document takes."""
    return np.diff(stream.starts, append=stream.length - 1)


def left_out(stream: Stream, seq_len: int) -> int:
    """How many documents of a stream are longer than a row, and in none: of those that are not cut."""
    return int((sizes_of(stream) > seq_len).sum()) if len(stream.given) else 0


def best_fit(edges: np.ndarray, seq_len: int, longest: float = np.inf) -> Segments:
    """Segments of documents that lie between `edges` (documents + 1,), in rows of `seq_len` positions; none of those
    longer than `longest`.

    A document longer than a row gives whole rows; what is left of it, and every shorter document, is packed by best
    fit decreasing, in groups of `GROUP` documents.
    """
    found, rows = [], 0
    for first in range(0, len(edges) - 1, GROUP):
        group = _fit_group(edges[first : first + GROUP + 1], first, seq_len, longest)
        found.append((group[0] + rows, *group[1:]))
        rows += int(group[0][-1]) + 1 if len(group[0]) else 0
    row, *parts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Segments(np.searchsorted(row, np.arange(rows + 1)), *parts)


def _fit_group(edges: np.ndarray, first: int, seq_len: int, longest: float) -> tuple[np.ndarray, ...]:
    """(row, start, stop, document) of every segment of a group, in the order of rows."""
    lengths = np.diff(edges)
    lengths[lengths > longest] = 0
    whole, left = np.divmod(lengths, seq_len)
    long = np.repeat(np.arange(len(lengths)), whole)
    starts = edges[long] + (np.arange(len(long)) - np.repeat(np.cumsum(whole) - whole, whole)) * seq_len
    short = np.flatnonzero(left)
    inside = whole[short] > 0
    bins = fill(left[short] + inside, seq_len)
    order = np.lexsort((short, ~inside, bins))
    short, stops = short[order], edges[1:][short[order]]
    return (
        np.concatenate([np.arange(len(long)), len(long) + bins[order]]),
        np.concatenate([starts, stops - left[short]]),
        np.concatenate([starts + seq_len, stops]),
        np.concatenate([long, short]) + first,
    )


def fill(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item by best fit decreasing: the fullest bin that still takes it, or a new one."""
    bins, count, free = np.empty(len(sizes), dtype=np.int64), 0, 0
    waiting: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room they have left
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        fitting = free >> size  # bit r of `free`: some bin has room r
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = waiting[room].pop()
            free ^= 0 if waiting[room] else 1 << room
        else:
            chosen, room, count = count, capacity, count + 1
        bins[item] = chosen
        if room > size:
            waiting[room - size].append(chosen)
            free |= 1 << (room - size)
    return bins
