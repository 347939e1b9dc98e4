"""Mixtures: several sources as one, and which of them every training row comes from.

The n-th row of a mixture is a function of n and the weights alone: row k of a component with share s is due at time
(k + 1/2) / s, and rows come in the order in which they are due. At any point each component is within a row or so of
its share, and any window of rows is found without counting up from the first.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lit_small_lm.errors import RequestError, RunError, shown
from lit_small_lm.plugin import Component, Document, Source, SourcePart, Spec, setting

SCALE = 1 << 20
"""Weights are rounded to this many parts, so that the order of rows is exact arithmetic on whole numbers."""


@dataclass(frozen=True, kw_only=True)
class Weighted(Spec):
    """A source of a mixture, and how much of it is wanted."""

    source: Source
    """Where its documents come from."""
    weight: float = setting(1.0, above=0, unit="training tokens, relative to the other sources")
    """Its share of the training tokens is its weight by the sum of all weights."""


@dataclass(frozen=True, kw_only=True)
class Mixture(Source):
    """Several named sources, mixed by training tokens; each is split, prepared and reported by itself.

    Raises:
        RequestError: no source, or a name that is not of letters, digits, _ and -.
    """

    sources: dict[str, Weighted] = dataclasses.field(default_factory=dict)
    """Name -> source and weight; a mixture may hold mixtures."""

    def components(self) -> Sequence[Component]:
        if not self.sources:
            raise RequestError("data.source.sources: none; allowed: at least one, such as --data.source.sources.web")
        for name in self.sources:
            if not re.fullmatch(r"[\w-]+", name):
                raise RequestError(f"data.source.sources: {shown(name)!r}; allowed: letters, digits, _ and -")
        total = sum(member.weight for member in self.sources.values())
        return [
            Component(f"{name}/{inner.name}" if inner.name else name, inner.source, weight / total * inner.weight)
            for name, (source, weight) in self._members()
            for inner in source.components()
        ]

    def parts(self) -> Sequence[SourcePart]:
        found = []
        for name, source, _ in self.components():
            with naming(name):
                found += [part._replace(name=f"{name}: {part.name}") for part in source.parts()]
        return found

    def read(self, part: int) -> Iterator[Document]:
        for name, source, _ in self.components():
            with naming(name):
                count = len(source.parts())
                if part < count:
                    yield from source.read(part)
                    return
            part -= count

    def _members(self) -> list[tuple[str, tuple[Source, float]]]:
        return [(name, (member.source, member.weight)) for name, member in self.sources.items()]


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Make errors raised inside name the member of the mixture they are about; of a plain source, leave them."""
    try:
        yield
    except (RequestError, RunError) as error:
        if not name:
            raise
        key, text = f"data.source.sources.{name.replace('/', '.source.sources.')}", str(error)
        inner = text.removeprefix("data.source.")
        raise type(error)(f"{key}.source.{inner}" if inner != text else f"{key}: {text}") from error


class Interleaving:
    """The order in which rows of several components come.

    Args:
        weights: rows of each component, relative to each other.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        self.shares = np.array([max(1, round(weight / total * SCALE)) for weight in weights], dtype=np.int64)
        self.whole = int(self.shares.sum())

    def window(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows `first` to `last` (exclusive) of the mixture: the component of each, and its number there."""
        time, count = self._time(first), len(self.shares)
        lows, highs = self._due_before(time), self._due_before(last + count)
        component = np.repeat(np.arange(count), highs - lows)
        number = np.concatenate([np.arange(low, high) for low, high in zip(lows, highs, strict=True)])
        # Row k is due at (2k+1) whole / (2 share): compared by its whole part, then by its exact fraction.
        due, rest = np.divmod((2 * number + 1) * self.whole, 2 * self.shares[component])
        order = np.lexsort((component, rest / (2 * self.shares[component]), due))
        wanted = order[first - lows.sum() : last - lows.sum()]
        return component[wanted], number[wanted]

    def counts(self, rows: int) -> np.ndarray:
        """How many of the first `rows` rows come from each component."""
        time = self._time(rows)
        low = self._due_before(time)
        component, _ = self.window(int(low.sum()), rows)
        return low + np.bincount(component, minlength=len(self.shares))

    def _due_before(self, time: int) -> np.ndarray:
        """Rows of each component that are due before a whole time."""
        return (2 * time * self.shares + self.whole - 1) // (2 * self.whole)

    def _time(self, rows: int) -> int:
        """The last whole time before which at most `rows` rows are due."""
        time = rows + len(self.shares)
        while time > 0 and self._due_before(time).sum() > rows:
            time -= 1
        return time
