"""How rows are cut for attention by pieces, for processors whose kernels compute every pair that they are given.

For each run of queries only those keys are given that its kind of visibility can possibly show it: causally what came
before, in a doubled row a noisy block's own surroundings and the clean tokens before it. The trick is that documents
are not looked at, wherever they begin: nothing waits for a device, all batches are cut alike, and the mask of a piece
says the rest. A row of T positions read causally costs little more than half of T^2 pairs, a doubled one of 2 T little
more than T^2 instead of 4 T^2. `piecewise` computes what is cut here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_small_lm.visibility import Place, Visibility

LENGTH = 64
"""Queries of a piece, as long as there are few pieces."""
MOST = 12
"""There are fewer pieces of a row, or of a half, than so many: longer rows are cut into longer ones."""


class Run(NamedTuple):
    """Columns of a row that lie side by side."""

    first: int
    last: int
    """The column behind them."""

    @property
    def length(self) -> int:
        return self.last - self.first

    def of(self, x: Tensor, dim: int) -> Tensor:
        """Those columns of x (..., T, ...)."""
        return x.narrow(dim, self.first, self.length)


class QueryPiece(NamedTuple):
    """A run of queries, and runs that hold all that they may see."""

    queries: Run
    keys: tuple[Run, ...]

    @property
    def seen(self) -> int:
        """How many keys it holds."""
        return sum(run.length for run in self.keys)

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key are computed."""
        return self.queries.length * self.seen


class Grid(NamedTuple):
    """A row, or each half of it, of so many columns cut into `count` runs of `length`, the last of which is longer."""

    columns: int
    length: int
    count: int

    @classmethod
    def of(cls, columns: int) -> "Grid":
        length = LENGTH
        while columns // length >= MOST:
            length *= 2
        return cls(columns, length, columns // length or 1)

    def run(self, half: int, index: int, before: float = 0, ahead: float = 0) -> Run:
        """Run `index` of a half, and so many columns of it before and ahead of the run."""
        start, last = half * self.columns, (index + 1) * self.length + ahead
        ends = index == self.count - 1 or last > self.count * self.length
        first = int(max(0, index * self.length - before))
        return Run(start + first, start + (self.columns if ends else int(last)))


class Division(NamedTuple):
    """How rows are cut, made once for all layers."""

    pieces: list[QueryPiece]
    biases: list[Tensor]
    """For each piece, (B, 1, T, S) float32 of 0 and -inf: what is added to the scores of its queries; B is 1 where one
    row stands for all."""

    @classmethod
    def of(cls, view: Visibility, window: int | None = None) -> "Division":
        """The division of whole rows."""
        chosen, biases, view = pieces(view, window), [], view.alike
        for piece in chosen:
            query, keys = _places(view.place, piece.queries), _places(view.place, *piece.keys)
            seen = view.visible(query.unsqueeze(-1), keys.unsqueeze(-2), window).unsqueeze(1)  # (B, 1, T, S)
            biases.append(torch.where(seen, 0.0, -math.inf))
        return cls(chosen, biases)


def spares(view: Visibility, window: int | None = None) -> bool:
    """Whether there are pairs in whole rows that no piece holds."""
    half = half_of(view)
    return any(run.length < half for piece in pieces(view, window) for run in piece.keys)


def pieces(view: Visibility, window: int | None = None) -> list[QueryPiece]:
    """The pieces that whole rows are cut into."""
    grid = Grid.of(half_of(view))
    far = math.inf if window is None else window - 1
    near = min(far, _over(view, grid))
    if view.kind != "doubled":
        ahead = {"causal": 0, "block": near}.get(view.kind, far)
        return [QueryPiece(grid.run(0, i), (grid.run(0, i, far, ahead),)) for i in range(grid.count)]
    ahead = near if view.clean == "block" else 0
    clean = [grid.run(1, i, far, ahead) for i in range(grid.count)]
    noisy = [QueryPiece(grid.run(0, i), (grid.run(0, i, near, near), clean[i])) for i in range(grid.count)]
    return noisy + [QueryPiece(grid.run(1, i), (clean[i],)) for i in range(grid.count)]


def _over(view: Visibility, grid: Grid) -> float:
    """How many columns the block of a column may reach beyond the column's run: none where all blocks begin and end
    with runs."""
    if view.block_size is None:
        return math.inf
    begins = view.start is not None and view.start % view.block_size == 0
    return 0 if begins and grid.length % view.block_size == 0 else view.block_size - 1


def half_of(view: Visibility) -> int:
    """Columns of a row, or of one half of a doubled row."""
    return view.positions.shape[1] // (2 if view.kind == "doubled" else 1)


def _places(place: Place, *runs: Run) -> Place:
    """The places of these columns, one run behind the other."""
    return Place(*(None if part is None else torch.cat([run.of(part, 1) for run in runs], 1) for part in place))
