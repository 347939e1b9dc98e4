"""What of a document is given, such as a prompt: read by the network, never predicted, masked or scored.

Characters become tokens so that no token crosses the edge of a given run: a prompt is then read in training as the same
tokens as while text is drawn behind it. In a stream of tokens what is given is kept as runs of places.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lit_small_lm.errors import RequestError, RunError, shown
from lit_small_lm.plugin import Document

NOTHING_GIVEN = np.empty((0, 2), dtype=np.int64)
"""The runs of a stream in which everything counts."""


class Stretch(NamedTuple):
    """A part of a text all of which is given, or none."""

    start: int
    stop: int
    given: bool


def stretches(length: int, given: tuple[tuple[int, int], ...]) -> Iterator[Stretch]:
    """A text of `length` characters in parts that are given and parts that are not, none of them empty."""
    at = 0
    for start, stop in given:
        if start > at:
            yield Stretch(at, start, given=False)
        if stop > start:
            yield Stretch(start, stop, given=True)
        at = stop
    if length > at:
        yield Stretch(at, length, given=False)


def check_given(document: Document) -> None:
    """Raises RunError if a document's given runs do not lie in order within its text."""
    edges = [edge for run in document.given for edge in run]
    if edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= len(document.text)):
        raise RunError(
            f"{shown(document.name)}: given {shown(str(document.given))} of {len(document.text)} characters; allowed: "
            "runs in order within the text"
        )


def refuse_given(given: object) -> None:
    """Raise RequestError if documents have given parts, where they are read while training goes on."""
    if given:
        raise RequestError(
            "data.reading: streamed; documents with prompts have to be prepared, so that those which do not fit are "
            "counted; allowed: prepared"
        )


def flags(runs: np.ndarray, start: int, stop: int) -> np.ndarray:
    """(stop - start,) which places of a stream lie in one of its given runs (R, 2)."""
    found = np.zeros(stop - start, dtype=bool)
    first, last = np.searchsorted(runs[:, 1], start, side="right"), np.searchsorted(runs[:, 0], stop)
    for low, high in (runs[first:last] - start).tolist():
        found[max(low, 0) : high] = True
    return found


def of_targets(runs: np.ndarray, start: int, stop: int) -> np.ndarray:
    """(stop - start,) which targets of a document at `start` to `stop` of a stream are given, from its first token's to
    its end; the end is if what stands before it is."""
    tokens = flags(runs, start, stop)
    return np.append(tokens[1:], tokens[-1])
