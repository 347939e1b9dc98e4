"""Shapes: depth and widths, tried with any family.

The study of Dhara-70M compares depths whose models differ by a quarter in parameters. `BudgetShape` makes such models
equal: it asks the family itself how many parameters a width gives, so that it is right for every family.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Budget, Dims, Shape, Size, Sizing, setting

WIDEST = 2**20
"""The largest width of a residual stream."""


@dataclass(frozen=True, kw_only=True)
class FixedShape(Shape):
    """A shape given width by width."""

    dim: int = setting(256, low=1, high=WIDEST, unit="channels")
    """Width of the residual stream."""
    n_layers: int = setting(4, low=1, high=10_000, unit="layers")
    """Depth."""
    n_heads: int = setting(4, low=1, high=2**16, unit="heads")
    """Query heads of each attention."""
    n_kv_heads: int | None = setting(None, low=1, high=2**16, unit="heads")
    """Key/value heads, a divisor of n_heads (grouped-query attention); null: n_heads."""
    head_dim: int | None = setting(None, low=1, high=2**16, unit="channels")
    """Width of one head; null: dim / n_heads."""
    hidden: int | None = setting(None, low=1, high=2**24, unit="channels")
    """Hidden width of the FFN; null: 8/3 dim, rounded up to a multiple of 32."""

    def resolve(self, sizing: Sizing | None = None) -> Dims:
        n_kv_heads = self.n_kv_heads or self.n_heads
        if self.head_dim is None and self.dim % self.n_heads:
            raise RequestError(
                f"shape: dim {self.dim} is not divisible by n_heads {self.n_heads} (remainder "
                f"{self.dim % self.n_heads}); choose another pair or give head_dim"
            )
        if self.n_heads % n_kv_heads:
            raise RequestError(
                f"shape: n_heads {self.n_heads} is not a multiple of n_kv_heads {n_kv_heads} (remainder "
                f"{self.n_heads % n_kv_heads}); allowed: a divisor of n_heads"
            )
        return Dims(
            dim=self.dim,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=self.head_dim or self.dim // self.n_heads,
            hidden=self.hidden or -(-8 * self.dim // 96) * 32,
        )


def fixed(dims: Dims) -> FixedShape:
    """The shape that has these widths, whatever they were solved for."""
    return FixedShape(**dataclasses.asdict(dims))


def nearest(count: Callable[[int], int], wanted: int, most: int) -> int:
    """The number from 1 to `most` at which `count`, which grows with it, is nearest to `wanted`; few calls."""
    high = 1
    while count(high) < wanted and high < most:
        high = min(2 * high, most)
    above = bisect.bisect_left(range(high), wanted, lo=max(1, high // 2), key=count)
    return min(max(1, above - 1), above, key=lambda number: abs(count(number) - wanted))


@dataclass(frozen=True, kw_only=True)
class BudgetShape(Shape):
    """The width at which a network of a given depth comes nearest to a number of parameters."""

    params: int = setting(10_000_000, low=1, high=10**15, unit="parameters")
    """Parameters wanted."""
    count: Literal["total", "non_embedding"] = "total"
    """Which parameters: all, or those outside the tables of tokens and positions and the output head."""
    n_layers: int = setting(4, low=1, high=10_000, unit="layers")
    """Depth."""
    head_dim: int = setting(32, low=1, high=2**16, unit="channels")
    """Width of one head; there are dim / head_dim of them."""
    queries_per_kv_head: int = setting(1, low=1, high=2**10, unit="heads")
    """Query heads that share one key/value head. The width is a multiple of head_dim times this."""
    hidden_ratio: float = setting(8 / 3, above=0, high=1024)
    """Hidden width of the FFN over dim."""
    hidden_multiple: int = setting(32, low=1, high=2**16, unit="channels")
    """What the hidden width is rounded to, to the nearest multiple."""
    rest: Literal["left", "hidden"] = "left"
    """What becomes of the parameters that the nearest width misses: they are left, or given to the hidden width, whose
    ratio then is another."""

    def resolve(self, sizing: Sizing | None = None) -> Dims:
        if sizing is None:
            raise RequestError(
                "shape: BudgetShape depends on family and vocabulary; it cannot be resolved without them"
            )

        @functools.cache
        def count(dims: Dims) -> int:
            return getattr(sizing(dims), self.count)

        most = max(1, WIDEST // (self.head_dim * self.queries_per_kv_head))
        dims = self._dims(nearest(lambda kv_heads: count(self._dims(kv_heads)), self.params, most))
        if count(self._dims(1)) > self.params:
            raise self._out_of_reach("smallest", self._dims(1), count(self._dims(1)))
        if dims.n_kv_heads == most and count(dims) < self.params:
            raise self._out_of_reach("largest", dims, count(dims))
        return dims if self.rest == "left" else self._filled(dims, count)

    def _filled(self, dims: Dims, count: Callable[[Dims], int]) -> Dims:
        """The same width, with the hidden width at which `count` comes nearest: at most twice what it is."""

        def at(multiples: int) -> Dims:
            return dataclasses.replace(dims, hidden=multiples * self.hidden_multiple)

        most = 2 * dims.hidden // self.hidden_multiple
        if count(at(1)) == count(at(most)):  # the family has hidden widths of its own
            return dims
        return at(nearest(lambda multiples: count(at(multiples)), self.params, most))

    def budget(self) -> Budget:
        return Budget(self.params, self.count)

    def _dims(self, kv_heads: int) -> Dims:
        heads = kv_heads * self.queries_per_kv_head
        dim = heads * self.head_dim
        hidden = max(1, round(dim * self.hidden_ratio / self.hidden_multiple)) * self.hidden_multiple
        return Dims(dim, self.n_layers, heads, kv_heads, self.head_dim, hidden)

    def _out_of_reach(self, end: str, dims: Dims, found: int) -> RequestError:
        allowed = "at least" if end == "smallest" else "at most"
        return RequestError(
            f"shape.params: {self.params:,} ({self.count}); the {end} network, {self.n_layers} deep and {dims.dim} "
            f"wide, has {found:,}; allowed: {allowed} that, or another n_layers or head_dim"
        )


@dataclass(frozen=True)
class Mismatch:
    """How near a network comes to the parameters that its shape was asked for."""

    shape: str
    """The class of the shape."""
    budget: Budget
    dims: Dims
    found: int
    """Parameters it has, counted as asked."""

    @property
    def share(self) -> float:
        """What is too much (above 0) or missing (below 0), as a share of what was asked."""
        return self.found / self.budget.params - 1

    def __str__(self) -> str:
        kind, dims = self.budget.count.replace("_", "-"), self.dims
        return (
            f"shape: {self.shape}: {self.budget.params:,} {kind} parameters asked, {self.found:,} "
            f"({100 * self.share:+.2f} %) at {dims.n_layers} layers x {dims.dim} dim, {dims.n_heads} heads "
            f"({dims.n_kv_heads} key/value) of {dims.head_dim}, {dims.hidden} hidden"
        )


def mismatch(shape: Shape, dims: Dims, size: Size) -> Mismatch | None:
    """What `shape` was asked for beside the `size` of a network of the `dims` it resolved to; None if for widths."""
    budget = shape.budget()
    return budget and Mismatch(type(shape).__name__, budget, dims, getattr(size, budget.count))
