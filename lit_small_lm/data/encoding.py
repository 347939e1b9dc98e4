"""From documents to arrays of ids, in order.

Documents are taken in batches of about a MiB of text; a longer text is cut before a space that follows a letter or a
digit, where byte-level tokenizers begin a new word anyhow, encoded in pieces and joined again. So are parts of a text
that are given and parts that are not. What a batch holds is decided by the documents alone, so any number of processes
gives the same result.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from lit_small_lm.data.duplicates import run_length, sketches
from lit_small_lm.data.given import NOTHING_GIVEN, stretches
from lit_small_lm.data.splits import SPLITS, Piece, Splits
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Document, Encoder, Source, Split

BATCH = 1 << 20
"""Characters of text encoded at once."""
LOOK_BACK = 1 << 16
"""Characters before the end of a piece in which a place to cut is searched."""


class ReadTo(NamedTuple):
    """Where reading goes on: a part of the source, and how many documents of it are done."""

    part: int
    document: int


class Cut(NamedTuple):
    """A text to encode: a piece of a document, or a run of a long one."""

    split: Split
    text: str
    digest: int
    begins: bool
    """Whether it is the beginning of its piece."""
    given: bool = False
    """Whether it is given, and not to be predicted."""


@dataclasses.dataclass
class TextBatch:
    """Texts that are encoded at once."""

    cuts: list[Cut] = dataclasses.field(default_factory=list)
    position: ReadTo = ReadTo(0, 0)
    """Where reading goes on after its last whole document."""
    whole: bool = True
    """Whether it ends where a document ends."""
    documents: int = 0
    """Documents that end in it."""
    empty: int = 0
    """Those of them without text."""
    size: int = 0
    """Characters."""

    def add(self, cut: Cut) -> None:
        self.cuts.append(cut)
        self.size += len(cut.text)
        self.whole = False

    def finish(self, position: ReadTo, empty: bool) -> None:
        """Note that a document ends here."""
        self.position, self.whole = position, True
        self.documents += 1
        self.empty += empty


class Encoded(NamedTuple):
    """The tokens of one split in a batch."""

    split: Split
    tokens: np.ndarray
    """Ids; each document is begun by the end token."""
    starts: np.ndarray
    """(documents,) where in `tokens` they begin."""
    sketches: np.ndarray
    """(documents, SKETCH) what duplicates are found by."""
    size: int
    """UTF-8 bytes of the texts."""
    given: np.ndarray = NOTHING_GIVEN
    """(R, 2) runs of `tokens` that are given."""


def documents_from(source: Source, start: ReadTo) -> Iterator[tuple[ReadTo, Document]]:
    """The documents of a source from `start` on, each with where reading goes on after it."""
    for part in range(start.part, len(source.parts())):
        for done, document in enumerate(source.read(part), 1):
            if part > start.part or done > start.document:
                yield ReadTo(part, done), document


def text_batches(source: Source, splits: Splits, start: ReadTo = ReadTo(0, 0)) -> Iterator[TextBatch]:
    """The documents of a source from `start` on, in batches; the last one may hold none."""
    batch = TextBatch(position=start)
    for position, document in documents_from(source, start):
        pieces = splits.digested(document)
        for cut in cuts(pieces):
            if batch.cuts and batch.size + len(cut.text) > BATCH:
                yield batch
                batch = TextBatch(position=batch.position)
            batch.add(cut)
        batch.finish(position, not pieces)
    yield batch


def cuts(pieces: Sequence[Piece]) -> Iterator[Cut]:
    """Pieces of documents, those longer than BATCH characters in runs, and what is given of them apart."""
    for split, text, digest, given in pieces:
        for start, end, is_given in stretches(len(text), given):
            while start < end:
                stop = _end_of_run(text, start, end)
                yield Cut(split, text[start:stop], digest, start == 0, is_given)
                start = stop


def _end_of_run(text: str, start: int, last: int) -> int:
    end = start + BATCH
    if end >= last:
        return last
    lowest = max(start + 1, end - LOOK_BACK)
    at = text.rfind(" ", lowest, end)
    while at > 0 and not text[at - 1].isalnum():
        at = text.rfind(" ", lowest, at)
    return at if at > 0 else end


def dtype_of(encoder: Encoder) -> str:
    """The smallest unsigned type that holds every id."""
    return "uint16" if encoder.specials.vocab_size <= 1 << 16 else "uint32"


def encoded(encoder: Encoder, batch: Sequence[Cut]) -> list[Encoded]:
    """The tokens of a batch, by split; encoded in this process.

    Raises:
        RequestError: the tokenizer gave an id outside its vocabulary.
    """
    ids = encoder.encode([cut.text for cut in batch])
    if len(ids) != len(batch):
        raise RequestError(f"data.tokenizer: it gave {len(ids)} answers for {len(batch)} texts")
    return [_of_split(encoder, split, batch, ids) for split in SPLITS if any(cut.split == split for cut in batch)]


def _of_split(encoder: Encoder, split: Split, batch: Sequence[Cut], ids: Sequence[Sequence[int]]) -> Encoded:
    end = (encoder.specials.end,)
    mine = [i for i, cut in enumerate(batch) if cut.split == split]
    begins = np.array([batch[i].begins for i in mine])
    lengths = np.array([len(ids[i]) for i in mine]) + begins
    runs = chain.from_iterable((end, ids[i]) if batch[i].begins else (ids[i],) for i in mine)
    tokens = _in_vocabulary(np.fromiter(chain.from_iterable(runs), np.int64, int(lengths.sum())), encoder)
    ends = np.cumsum(lengths)
    given = np.stack([ends - lengths + begins, ends], axis=1)[[batch[i].given for i in mine]]
    starts = (ends - lengths)[begins]
    stops = np.append(starts, len(tokens))[1:]
    digests = np.array([batch[i].digest for i in mine], np.uint64)[begins]
    size = sum(len(batch[i].text.encode()) for i in mine)
    return Encoded(split, tokens, starts, sketches(tokens, starts, stops, digests, _run_of(encoder)), size, given)


@functools.lru_cache(maxsize=4)
def _run_of(encoder: Encoder) -> int:
    return run_length(encoder.byte_lengths().tolist())


def _in_vocabulary(ids: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Ids in the type they are stored in. Raises RequestError for one that is no id of the encoder."""
    least, largest, size = int(ids.min(initial=0)), int(ids.max(initial=0)), encoder.specials.vocab_size
    if least < 0 or largest >= size:
        wrong = least if least < 0 else largest
        raise RequestError(f"data.tokenizer: it gave the id {wrong}; allowed with vocab_size {size}: 0 to {size - 1}")
    return ids.astype(dtype_of(encoder))
