"""Exact and near duplicates, counted while a source is tokenised.

A document's near duplicates are found by MinHash: two texts share the least hash of their runs of tokens with a
probability that is the overlap of the two sets of runs (Broder 1997, doi 10.1109/SEQUEN.1997.666900). One hash function
does for all minima: its upper bits say which of 128 bins a run falls into, and an empty bin borrows from the next one
that is not (one-permutation hashing, arXiv 1208.1259; densified by rotation, arXiv 1406.4784). Documents count as near
duplicates if all 8 minima of one of 16 bands are equal, which half of the pairs with an overlap of 0.7 reach.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lit_small_lm.plugin import Split

RUN_BYTES = 24
"""Bytes that a run stands for at least, by the mean length of the vocabulary: about five words of English."""
LONGEST = 32
BINS, BANDS = 128, 16
SKETCH = 1 + BANDS
"""Numbers kept of a document: the digest of its text, and one hash for each band."""
EMPTY = np.uint64(2**64 - 1)
BIN_SHIFT = np.uint64(64 - 7)
AT_ONCE = 4096
"""Documents whose minima are held in memory together."""
_ODD = np.random.default_rng(20).integers(2**63, 2**64, 2, dtype=np.uint64) | np.uint64(1)
_BAND = np.random.default_rng(21).integers(2**63, 2**64, BINS // BANDS, dtype=np.uint64) | np.uint64(1)


class Duplicates(NamedTuple):
    """How many documents of a split are there more than once."""

    exact: int
    """Documents whose text an earlier one of the split has."""
    near: int
    """Documents that share a band with an earlier one of the split, exact ones included."""
    in_train: int
    """Documents of a held-out split that share a band with a training document."""


def run_length(byte_lengths: Sequence[int]) -> int:
    """Tokens of a run, a power of two: 32 of single bytes, 4 or 8 of a usual vocabulary."""
    lengths = np.asarray(byte_lengths)
    mean = float(lengths[lengths > 0].mean())
    run = 2
    while run < LONGEST and run * mean < RUN_BYTES:
        run *= 2
    return run


def sketches(tokens: np.ndarray, starts: np.ndarray, stops: np.ndarray, digests: np.ndarray, run: int) -> np.ndarray:
    """(documents, SKETCH) uint64: for each document `tokens[start:stop]` the digest of its text and its bands.

    The first token, which ends the document before, does not count. A document shorter than a run of `run` tokens has
    no near duplicates: its digest stands in every band.
    """
    found = np.repeat(digests[:, None], SKETCH, axis=1)
    for first in range(0, len(starts), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        low, high = starts[some][0] + 1, stops[some][-1]
        minima = _minima(tokens[low:high], starts[some] + 1 - low, stops[some] - low, run)
        full = minima[:, 0] != EMPTY
        found[some][full, 1:] = _bands(minima[full])
    return found


def _minima(tokens: np.ndarray, starts: np.ndarray, stops: np.ndarray, run: int) -> np.ndarray:
    """(documents, BINS) least hash of each bin; all EMPTY for documents without a run."""
    hashes = _hashes(tokens, run)
    at = np.arange(len(hashes))
    documents = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(tokens)))[: len(hashes)]
    inside = at + run <= stops[documents]
    hashes, documents = hashes[inside], documents[inside]
    minima = np.full(len(starts) * BINS, EMPTY)
    np.minimum.at(minima, documents * BINS + (hashes >> BIN_SHIFT).astype(np.int64), hashes)
    return _borrowed(minima.reshape(len(starts), BINS))


def _hashes(tokens: np.ndarray, run: int) -> np.ndarray:
    """One 64-bit hash for every run of tokens; those that cross from document to document are sorted out later.

    Runs of twice the length are made of two, so a run of 32 takes five steps.
    """
    mixed, length = tokens.astype(np.uint64), 1
    while length < run:
        mixed = mixed[: max(0, len(mixed) - length)] * _ODD[0] + mixed[length:] * _ODD[1]
        mixed ^= mixed >> np.uint64(29)
        length *= 2
    mixed *= _ODD[0]
    return mixed ^ (mixed >> np.uint64(32))


def _borrowed(minima: np.ndarray) -> np.ndarray:
    """Every empty bin filled from the next one, in a circle, that is not, and marked with the distance."""
    twice = np.concatenate([minima, minima], axis=1) != EMPTY
    places = np.where(twice, np.arange(2 * BINS, dtype=np.int16), np.int16(2 * BINS))
    nearest = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :BINS]
    distance = nearest - np.arange(BINS, dtype=np.int16)
    values = np.take_along_axis(minima, nearest.astype(np.int64) % BINS, axis=1)
    return np.where(values == EMPTY, EMPTY, values + distance.astype(np.uint64) * _ODD[0])


def _bands(minima: np.ndarray) -> np.ndarray:
    """(documents, BANDS): one hash for the minima of each band."""
    grouped = minima.reshape(len(minima), BANDS, BINS // BANDS)
    mixed = ((grouped ^ (grouped >> np.uint64(31))) * _BAND).sum(axis=-1, dtype=np.uint64)
    return mixed ^ (mixed >> np.uint64(32))


def count(sketched: Mapping[Split, Sequence[np.ndarray]]) -> dict[Split, Duplicates]:
    """The duplicates of each split, from the sketches of all its shards in order.

    One band is looked at at a time, so a few dozen bytes a document are held in memory.
    """
    sizes = {split: sum(map(len, arrays)) for split, arrays in sketched.items()}
    near = {split: np.zeros(size, bool) for split, size in sizes.items()}
    crossing = {split: np.zeros(size, bool) for split, size in sizes.items()}
    for band in range(1, SKETCH):
        trained = np.unique(_column(sketched["train"], band))
        for split in sketched:
            values = _column(sketched[split], band)
            near[split] |= _seen_before(values)
            if split != "train":
                crossing[split] |= np.isin(values, trained)
    return {
        split: Duplicates(
            int(_seen_before(_column(arrays, 0)).sum()), int(near[split].sum()), int(crossing[split].sum())
        )
        for split, arrays in sketched.items()
    }


def _column(arrays: Sequence[np.ndarray], number: int) -> np.ndarray:
    return np.concatenate([array[:, number] for array in arrays])


def _seen_before(values: np.ndarray) -> np.ndarray:
    """Whether each value stands at an earlier place too."""
    again = np.ones(len(values), bool)
    again[np.unique(values, return_index=True)[1]] = False
    return again
