"""Attention by pieces, forward and backward, as one operator: for rows on a CPU that `pieces` has cut.

As in FlashAttention (arXiv 2205.14135) nothing of the size of the scores is kept for the backward pass, which computes
them anew. The tricks: each step is one call of PyTorch for the heads of as many rows as keep their scores in the
processor's cache; all steps but some sums work in the same memory, so that it stays there; and pairs that a piece
leaves out cost nothing, where PyTorch's own kernel leaves out keys by 512 and only causally. Whatever the dtype of the
inputs, products and softmax are computed in float32 or better. `nn.attention.plain_attention` with the dense mask is
the plain twin.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lit_small_lm.pieces import Division, QueryPiece, Run, pieces
from lit_small_lm.transforms import transformed
from lit_small_lm.visibility import Visibility

SCORES = 1 << 17
"""Scores of one piece that a thread holds at once, unless those of one key/value head are more: 1 MiB in the backward
pass. Half as many and twice as many are up to 10 % slower."""
LEAST = {"float32": (128, 1 << 26), "bfloat16": (64, 1 << 23)}
"""Columns of a row, and B H T T K, from which on pieces pay, in float32 or better and in less. Just above they are even
with PyTorch's own kernel; at 256 columns, eight rows and eight heads of 32 they take 0.87 to 0.91 of its time in
float32 and 0.7 in bfloat16 (one thread of an AMD EPYC of 2022 with 1 MiB of L2, torch 2.13; as all figures here)."""
LONGEST_CAUSAL = 768
"""Columns from which on PyTorch's own kernel is as quick where rows are causal and need no mask: 0.98 of the time of
pieces in float32, 0.9 in bfloat16; at 512 columns 1.25."""
SLOW = 192
"""Columns up to which PyTorch's own kernel is slower in bfloat16 even where pieces spare nothing: 2.3 times for 64, 1.8
for 128; for 256 they are even. It is its backward pass, which in float32 is quicker."""
TILES = torch.cpu._is_amx_tile_supported()
"""Whether the processor multiplies bfloat16 much faster than float32; on those this was not measured."""
KEPT = 16
"""Widths of causal rows whose division is kept."""


def pays(q: Tensor) -> bool:
    """Whether pieces are quicker than PyTorch's own kernel for these queries (B, H, T, K)."""
    if q.device.type != "cpu":
        return False
    low = dtype_of(q).itemsize < 4
    columns, work = LEAST["bfloat16" if low else "float32"]
    return q.shape[2] >= columns and q.numel() * q.shape[2] >= work and not (low and TILES) and not transformed()


def pays_without_sparing(q: Tensor) -> bool:
    """The same where every query may see all keys."""
    return pays(q) and dtype_of(q).itemsize < 4 and q.shape[2] <= SLOW and torch.is_grad_enabled()


def piecewise_attention(
    q: Tensor, k: Tensor, v: Tensor, division: Division | None, scale: float | None = None
) -> Tensor:
    """q (B, H, T, K), k (B, G, T, K), v (B, G, T, V) -> (B, H, T, V), stored as (B, T, H, V).

    Without a division every row is one document that is read causally; it is cut within the operator, so that a
    compiled network has one form of it for rows of any width. Under autocast the inputs are rounded to its dtype, and
    the output is of it, as with PyTorch's own attention.
    """
    v = v.contiguous()  # often a part of one product with queries and keys, which would be kept whole
    q, k, v = (part.to(dtype_of(part)) for part in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if division is None:
        return _attention(q, k, v, [], None, scale)
    return _attention(q, k, v, division.biases, _edges_of(division.pieces), scale)


class Tile(NamedTuple):
    """Heads that are worked on at once: h query heads of n rows, which read g key/value heads; N = n h."""

    rows: slice
    heads: slice
    groups: slice

    def queries(self, x: Tensor) -> Tensor:
        """Its part (n, h, T, K) of x (B, H, T, K)."""
        return x[self.rows, self.heads]

    def keys(self, x: Tensor) -> Tensor:
        """Its part (n, g, 1, T, K) of x (B, G, T, K)."""
        return x[self.rows, self.groups].unsqueeze(2)

    def bias(self, x: Tensor) -> Tensor:
        """Its part (n, 1, t, s) of x (B, 1, t, s); one row stands for all."""
        return x if len(x) == 1 else x[self.rows]


class Desk:
    """The size of all tiles, and memory that they are worked on in, one after the other."""

    def __init__(self, q: Tensor, k: Tensor, cut: Sequence[QueryPiece]) -> None:
        self.cut, self.like, self.all = cut, q, k.shape[:2]
        self.repeat = q.shape[1] // k.shape[1]
        most = torch.get_num_threads() * SCORES // (self.repeat * max(piece.pairs for piece in cut))
        self.rows, self.groups = _divisor(k.shape[0], most // k.shape[1]), _divisor(k.shape[1], most)
        self.heads = self.groups * self.repeat

    def tiles(self) -> Iterator[Tile]:
        rows, groups = self.all
        for row, group in itertools.product(range(0, rows, self.rows), range(0, groups, self.groups)):
            head = group * self.repeat
            yield Tile(slice(row, row + self.rows), slice(head, head + self.heads), slice(group, group + self.groups))

    def new(self, *shape: int) -> Tensor:
        """(N, *shape), in the dtype to compute in."""
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        return self.like.new_empty(self.rows * self.heads, *shape, dtype=dtype)

    def products(self, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(N, a, b) for each piece, all in the same memory."""
        flat = self.new(max(a * b for a, b in sizes)).view(-1)
        return [flat[: self.rows * self.heads * a * b].view(-1, a, b) for a, b in sizes]

    def scores(self) -> list[Tensor]:
        """(N, t, s) for each piece, all in the same memory."""
        return self.products([(piece.queries.length, piece.seen) for piece in self.cut])

    def near(self, x: Tensor) -> list[Tensor]:
        """(N, t, K) for each piece: what of x (N, T, K) are its queries."""
        return [piece.queries.of(x, 1) for piece in self.cut]

    def seen(self, x: Tensor) -> list[list[Tensor]]:
        """(N, s, K), for each run of keys of each piece, of x (N, T, K)."""
        return [[run.of(x, 1) for run in piece.keys] for piece in self.cut]

    def by_row(self, x: Tensor) -> Tensor:
        """(N, t, K) -> (n, h, t, K)."""
        return x.view(self.rows, self.heads, *x.shape[1:])

    def by_group(self, x: Tensor) -> Tensor:
        """(N, T, K) -> (n, g, h/g, T, K)."""
        return x.view(self.rows, self.groups, self.repeat, *x.shape[1:])


class Probabilities:
    """How much each query takes of what its keys stand for."""

    def __init__(self, desk: Desk, queries: Tensor, keys: Tensor, biases: Sequence[Tensor], scale: float) -> None:
        """queries and keys (N, T, K), of one tile after the other."""
        scores = desk.scores()
        rows = [desk.by_row(part) for part in scores]
        self.steps = list(zip(desk.near(queries), desk.seen(keys), biases, scores, rows, strict=True))
        self.scale = scale

    def of(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Piece by piece queries (N, t, K), keys (N, s, K) and shares (N, t, s), which last until the next ones."""
        for near, seen, bias, scores, rows in self.steps:
            keys = _joined(seen)
            _product(near, keys.mT, scores, self.scale)
            rows.add_(tile.bias(bias))
            yield near, keys, torch.softmax(scores, -1, out=scores)


@torch.library.custom_op("lit_small_lm::piecewise_attention", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _attention(
    q: Tensor, k: Tensor, v: Tensor, biases: Sequence[Tensor], cuts: Sequence[int] | None, scale: float
) -> Tensor:
    (cut, biases), out = _division(q, biases, cuts), empty_like(q, v.shape[3])
    desk = Desk(q, k, cut)
    queries, keys, values = (desk.new(*part.shape[2:]) for part in (q, k, v))
    shares = Probabilities(desk, queries, keys, biases, scale)
    found = desk.products([(piece.queries.length, v.shape[3]) for piece in cut])
    steps = list(zip(cut, desk.seen(values), found, strict=True))
    for tile in desk.tiles():
        _lay(desk, tile, (queries, q), keys=((keys, k), (values, v)))
        to = tile.queries(out)
        for (piece, seen, product), (_, _, taken) in zip(steps, shares.of(tile), strict=True):
            _product(taken, _joined(seen), product)
            piece.queries.of(to, 2).copy_(desk.by_row(product))
    return out


@_attention.register_fake
def _(q, k, v, biases, cuts, scale):
    return empty_like(q, v.shape[3])


class Sum(NamedTuple):
    """Where a piece adds to the gradients of its keys or values."""

    runs: list[tuple[Tensor, slice]]
    """For each run of its keys their gradients (N, r, K), and which of the piece's s keys they are."""

    def add(self, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        """left (N, s, t) times right (N, t, K). PyTorch's product adds head after head, each on all threads, where its
        output is not contiguous."""
        for total, part in self.runs:
            if total.is_contiguous():
                torch.baddbmm(total, left[:, part], right, alpha=scale, out=total)
            else:
                total.add_(torch.bmm(left[:, part], right), alpha=scale)


class Sums:
    """Gradients of keys or values (N, T, K)."""

    def __init__(self, desk: Desk, like: Tensor) -> None:
        self.desk, self.total = desk, desk.new(*like.shape[2:])
        lengths = ([run.length for run in piece.keys] for piece in desk.cut)
        ends = (list(itertools.accumulate(sizes, initial=0)) for sizes in lengths)
        parts = ([slice(*edges) for edges in itertools.pairwise(found)] for found in ends)
        self.pieces = [Sum(list(zip(*both, strict=True))) for both in zip(desk.seen(self.total), parts, strict=True)]

    def write(self, tile: Tile, to: Tensor) -> None:
        """To the tile's part of to (B, G, T, K), each key/value head summed over those of its queries."""
        found = self.desk.by_group(self.total)
        tile.keys(to).copy_(found.sum(2, keepdim=True) if self.desk.repeat > 1 else found)


@torch.library.custom_op(
    "lit_small_lm::piecewise_attention_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,)
)
def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, biases: Sequence[Tensor], cuts: Sequence[int] | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    cut, biases = _division(q, biases, cuts)
    of_q, of_k, of_v = (empty_like(part, part.shape[3]) for part in (q, k, v))
    desk = Desk(q, k, cut)
    queries, keys, values, grads = (desk.new(*part.shape[2:]) for part in (q, k, v, grad))
    shares, of_keys, of_values = Probabilities(desk, queries, keys, biases, scale), Sums(desk, k), Sums(desk, v)
    found = desk.products([(piece.queries.length, q.shape[3]) for piece in cut])
    parts = cut, desk.near(grads), desk.seen(values), desk.scores(), found, of_keys.pieces, of_values.pieces
    steps = list(zip(*parts, strict=True))
    for tile in desk.tiles():
        _lay(desk, tile, (queries, q), (grads, grad), keys=((keys, k), (values, v)))
        of_keys.total.zero_(), of_values.total.zero_()
        to = tile.queries(of_q)
        for (near, seen, taken), step in zip(shares.of(tile), steps, strict=True):
            piece, upon, given, slopes, of_near, of_seen, of_given = step
            of_given.add(taken.mT, upon)
            _product(upon, _joined(given).mT, slopes)
            torch._softmax_backward_data(slopes, taken, -1, slopes.dtype, grad_input=slopes)
            of_seen.add(slopes.mT, near, scale)
            _product(slopes, seen, of_near, scale)
            piece.queries.of(to, 2).copy_(desk.by_row(of_near))
        of_keys.write(tile, of_k), of_values.write(tile, of_v)
    return of_q, of_k, of_v


@_gradients.register_fake
def _(grad, q, k, v, biases, cuts, scale):
    return tuple(empty_like(part, part.shape[3]) for part in (q, k, v))


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    q, k, v, biases, ctx.cuts, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *biases)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k, v, *biases = ctx.saved_tensors
    return *_gradients(grad, q, k, v, biases, ctx.cuts, ctx.scale), [None] * len(biases), None, None


_attention.register_autograd(_backward, setup_context=_keep)


def dtype_of(x: Tensor) -> torch.dtype:
    """Of what x is read as; autocast leaves float64 as it is."""
    kind = x.device.type
    lowered = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if lowered else x.dtype


def _lay(desk: Desk, tile: Tile, *queries: tuple[Tensor, Tensor], keys: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the tile's part: for (N, T, K) from (B, H, T, K), for keys from (B, G, T, K)."""
    for to, part in queries:
        desk.by_row(to).copy_(tile.queries(part))
    for to, part in keys:
        desk.by_group(to).copy_(tile.keys(part))


def _product(left: Tensor, right: Tensor, out: Tensor, scale: float = 1.0) -> Tensor:
    """left (N, a, b), right (N, b, c) -> scale times their product, (N, a, c)."""
    return torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _divisor(count: int, most: int) -> int:
    """The largest divisor of a number that is not more than another, and at least 1."""
    return next((size for size in range(min(count, most), 1, -1) if count % size == 0), 1)


def empty_like(like: Tensor, width: int) -> Tensor:
    """(B, H, T, width), stored as (B, T, H, width): what heads are joined from without a copy."""
    rows, heads, time = like.shape[:3]
    return like.new_empty(rows, time, heads, width).transpose(1, 2)


def _edges_of(cut: Sequence[QueryPiece]) -> list[int]:
    """For each piece the columns where its queries begin and end, and where two runs of keys do; of the second there
    may be none."""
    return [edge for piece in cut for run in (piece.queries, *(*piece.keys, Run(0, 0))[:2]) for edge in run]


def _cut(edges: Sequence[int]) -> list[QueryPiece]:
    """The pieces that have these edges."""
    runs = [Run(*edges[at : at + 2]) for at in range(0, len(edges), 2)]
    triples = (runs[at : at + 3] for at in range(0, len(runs), 3))
    return [QueryPiece(first, tuple(run for run in keys if run.last)) for first, *keys in triples]


def _division(q: Tensor, biases: Sequence[Tensor], cuts: Sequence[int] | None) -> Division:
    """How these queries are cut."""
    return causal_rows(q.shape[2], q.device) if cuts is None else Division(_cut(cuts), list(biases))


@functools.lru_cache(KEPT)
def causal_rows(columns: int, device: torch.device) -> Division:
    """How rows of one document are cut that are read causally."""
    return Division.of(Visibility.rows(torch.empty(1, columns, device=device)))


def _pairs_of(shape: Sequence[int], cuts: Sequence[int] | None) -> int:
    """Pairs of a query and a key, in all rows and heads, of queries of this shape (B, H, T, K)."""
    cut = pieces(Visibility.rows(torch.empty(1, shape[2], device="meta"))) if cuts is None else _cut(cuts)
    return shape[0] * shape[1] * sum(piece.pairs for piece in cut)


@register_flop_formula(torch.ops.lit_small_lm.piecewise_attention)
def _flops(q, k, v, biases, cuts, *args, out_shape=None, **kwargs) -> int:
    return 2 * _pairs_of(q, cuts) * (q[3] + v[3])


@register_flop_formula(torch.ops.lit_small_lm.piecewise_attention_backward)
def _backward_flops(grad, q, k, v, biases, cuts, *args, out_shape=None, **kwargs) -> int:
    return 2 * _pairs_of(q, cuts) * (3 * q[3] + 2 * v[3])
