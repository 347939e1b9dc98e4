"""Attention by pieces of a row, for processors whose kernels compute every pair that they are given.

For each run of queries only those keys are given that its kind of visibility can possibly show it: causally what came
before, in a doubled row a noisy block's own surroundings and the clean tokens before it. The trick is that documents
are not looked at, wherever they begin: nothing waits for a device, all batches are cut alike, and the mask of a piece
says the rest. A row of T positions read causally costs little more than half of T^2 pairs, a doubled one of 2 T little
more than T^2 instead of 4 T^2.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_small_lm.visibility import Place, Visibility

LEAST = 512
"""Columns of a row from which on pieces pay: with fewer, the kernel is quicker than their cutting."""
LENGTH = 128
"""Queries of a piece, as long as there are few pieces."""
MOST = 6
"""There are fewer pieces of a row, or of a half, than so many: longer rows are cut into longer ones."""


class Run(NamedTuple):
    """Columns of a row, or of one half of a doubled row, that lie side by side."""

    half: int
    """0, or 1 for the clean half."""
    first: int
    last: int | None
    """The column behind them; None: they go on to the end, wherever that is."""


class QueryPiece(NamedTuple):
    """A run of queries, and runs that hold all that they may see."""

    queries: Run
    keys: tuple[Run, ...]


class Grid(NamedTuple):
    """A row, or each half of it, cut into `count` runs of `length` columns, the last of which is longer."""

    length: int
    count: int

    @classmethod
    def of(cls, columns: int) -> "Grid":
        length = LENGTH
        while columns // length >= MOST:
            length *= 2
        return cls(length, columns // length)

    def run(self, half: int, index: int, before: float = 0, ahead: float = 0) -> Run:
        """Run `index`, and so many columns before and ahead of it."""
        last = (index + 1) * self.length + ahead
        ends = index == self.count - 1 or last > self.count * self.length
        return Run(half, int(max(0, index * self.length - before)), None if ends else int(last))


def pays(q: Tensor) -> bool:
    """Whether it is worth while to cut rows with these queries (B, H, T, K)."""
    return q.device.type == "cpu" and q.shape[2] >= LEAST


class Division(NamedTuple):
    """How rows are cut, made once for all layers."""

    half: int
    """Columns of a row, or of one half of it."""
    pieces: list[QueryPiece]
    biases: list[Tensor]
    """For each piece, (B, 1, T, S) of 0 and -inf: what is added to the scores of its queries; B is 1 where one row
    stands for all."""


def plan(view: Visibility, window: int | None, dtype: torch.dtype) -> Division | None:
    """How whole rows without a cache are cut; None where every query may see all of them."""
    half, chosen = half_of(view), pieces(view, window)
    if all(run.first == 0 and run.last is None for piece in chosen for run in piece.keys):
        return None
    view = view if view.layout is None else Visibility.laid_out(view.layout, view.positions.device)
    runs = [run for piece in chosen for run in (piece.queries, *piece.keys)]
    cuts = [None if part is None else Slices(part, 1, half, runs) for part in view.place]
    biases = []
    for piece in chosen:
        query, keys = (Place(*(cut and cut.take(*runs) for cut in cuts)) for runs in ((piece.queries,), piece.keys))
        seen = view.visible(query.unsqueeze(-1), keys.unsqueeze(-2), window).unsqueeze(1)  # (B, 1, T, S)
        biases.append(torch.where(seen, 0.0, -math.inf).to(dtype))
    return Division(half, chosen, biases)


def piecewise_attention(q: Tensor, k: Tensor, v: Tensor, plan: Division, scale: float | None = None) -> Tensor:
    """q (B, H, T, K), k and v (B, H, T, K) -> (B, H, T, K).

    `nn.attention.plain_attention` with the dense mask is the plain twin.
    """
    queries = Slices(q, 2, plan.half, [piece.queries for piece in plan.pieces])
    keys, values = (Slices(part, 2, plan.half, [run for piece in plan.pieces for run in piece.keys]) for part in (k, v))
    out = [
        F.scaled_dot_product_attention(
            queries.take(piece.queries), keys.take(*piece.keys), values.take(*piece.keys), bias, scale=scale
        )
        for piece, bias in zip(plan.pieces, plan.biases, strict=True)
    ]
    return torch.cat(out, 2)


def pieces(view: Visibility, window: int | None = None) -> list[QueryPiece]:
    """The pieces that whole rows are cut into."""
    grid = Grid.of(half_of(view))
    far, block = (math.inf if size is None else size - 1 for size in (window, view.block_size))
    near = min(far, block)
    if view.kind != "doubled":
        ahead = {"causal": 0, "block": near}.get(view.kind, far)
        return [QueryPiece(grid.run(0, i), (grid.run(0, i, far, ahead),)) for i in range(grid.count)]
    ahead = near if view.clean == "block" else 0
    clean = [grid.run(1, i, far, ahead) for i in range(grid.count)]
    noisy = [QueryPiece(grid.run(0, i), (grid.run(0, i, near, near), clean[i])) for i in range(grid.count)]
    return noisy + [QueryPiece(grid.run(1, i), (clean[i],)) for i in range(grid.count)]


def half_of(view: Visibility) -> int:
    """Columns of a row, or of one half of a doubled row."""
    return view.positions.shape[1] // (2 if view.kind == "doubled" else 1)


class Slices:
    """x (..., T, ...) cut wherever a run begins or ends, once for all of them: what comes back for a run in the
    backward pass is then added to its own columns, not to the whole row."""

    def __init__(self, x: Tensor, dim: int, half: int, runs: Sequence[Run]) -> None:
        self.dim, self.starts, self.parts = dim, [], []
        for index, side in enumerate(x.split(half, dim)):
            edges = {edge for run in runs if run.half == index for edge in run[1:] if edge is not None}
            starts = sorted({0} | edges)
            sizes = [end - start for start, end in itertools.pairwise(starts)]
            self.starts.append(starts)
            self.parts.append(side.split([*sizes, half - starts[-1]], dim))

    def take(self, *runs: Run) -> Tensor:
        """The columns of these runs, one behind the other."""
        parts = [part for run in runs for part in self._within(run)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def _within(self, run: Run) -> list[Tensor]:
        pairs = zip(self.starts[run.half], self.parts[run.half], strict=True)
        return [part for start, part in pairs if run.first <= start and (run.last is None or start < run.last)]
