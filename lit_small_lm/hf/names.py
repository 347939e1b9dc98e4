"""Name maps: which of a public model's tensors make up each of ours, and how they are joined.

A map is data, read in both directions: `Join.join` makes our tensor of theirs, `Join.split` theirs of ours. The same
map carries weights, gradients and optimizer states.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_small_lm.errors import RunError


class Join(abc.ABC):
    """How tensors of theirs become one of ours, and back."""

    @abc.abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Theirs, in the order of `Entry.theirs` -> ours."""

    @abc.abstractmethod
    def split(self, ours: Tensor) -> list[Tensor]:
        """Ours -> theirs, in the order of `Entry.theirs`."""


@dataclass(frozen=True)
class Same(Join):
    """One tensor, as it is."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]

    def split(self, ours: Tensor) -> list[Tensor]:
        return [ours]


@dataclass(frozen=True)
class Grouped(Join):
    """Several projections in one: the rows of each fall into `groups`; ours has, group by group, the share of each.

    Works on weights (rows, D) and on biases (rows,).
    """

    groups: int
    shares: tuple[int, ...]
    """How many equal portions of a group each projection has: (queries a key/value head, 1, 1) for q, k and v."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        groups = zip(*(part.chunk(self.groups) for part in parts), strict=True)
        return torch.cat([piece for group in groups for piece in group])

    def split(self, ours: Tensor) -> list[Tensor]:
        unit = ours.shape[0] // self.groups // sum(self.shares)
        rows = ours.unflatten(0, (self.groups, -1))  # (groups, rows of one group, ...)
        return [part.flatten(0, 1) for part in rows.split([unit * share for share in self.shares], dim=1)]


@dataclass(frozen=True)
class Transposed(Join):
    """A matrix stored (in, out), as GPT-2's are; `inner` joins what is left."""

    inner: Join = Same()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return self.inner.join([part.T for part in parts])

    def split(self, ours: Tensor) -> list[Tensor]:
        return [part.T for part in self.inner.split(ours)]


@dataclass(frozen=True)
class Fused(Join):
    """One tensor of theirs that holds several projections one after another; `inner` joins them our way."""

    sizes: tuple[int, ...]
    """Rows of each projection."""
    inner: Join

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return self.inner.join(parts[0].split(list(self.sizes)))

    def split(self, ours: Tensor) -> list[Tensor]:
        return [torch.cat(self.inner.split(ours))]


@dataclass(frozen=True)
class Taps(Join):
    """A depthwise convolution stored (C, 1, N), oldest tap first; ours is (C, N), the newest first."""

    inner: Join = Same()
    """How its channels come together."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return self.inner.join([part.squeeze(1).flip(1) for part in parts])

    def split(self, ours: Tensor) -> list[Tensor]:
        return [part.flip(1).unsqueeze(1) for part in self.inner.split(ours)]


@dataclass(frozen=True)
class HalfSplit(Join):
    """Rows of which each group ends in channels that turn in pairs of neighbours; ours lie half a turn apart."""

    groups: int
    turned: int
    """How many rows at the end of each group turn; an even number."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return self._reordered(parts[0], lambda rows: rows.unflatten(1, (-1, 2)).transpose(1, 2))

    def split(self, ours: Tensor) -> list[Tensor]:
        return [self._reordered(ours, lambda rows: rows.unflatten(1, (2, -1)).transpose(1, 2))]

    def _reordered(self, rows: Tensor, reorder: Callable[[Tensor], Tensor]) -> Tensor:
        groups = rows.unflatten(0, (self.groups, -1))  # (groups, rows of one group, ...)
        kept, turned = groups.split([groups.shape[1] - self.turned, self.turned], dim=1)
        return torch.cat([kept, reorder(turned).flatten(1, 2)], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and the tensors of theirs that it is made of."""

    ours: str
    theirs: tuple[str, ...]
    join: Join = Same()


def to_ours(entries: Sequence[Entry], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names. Raises RunError naming the tensors that are missing."""
    missing = [name for entry in entries for name in entry.theirs if name not in theirs]
    if missing:
        raise RunError(f"weights: {len(missing)} tensors are missing, first: {missing[0]}")
    return {entry.ours: entry.join.join([theirs[name] for name in entry.theirs]) for entry in entries}


def to_theirs(entries: Sequence[Entry], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names."""
    found: dict[str, Tensor] = {}
    for entry in entries:
        found |= zip(entry.theirs, entry.join.split(ours[entry.ours]), strict=True)
    return found
