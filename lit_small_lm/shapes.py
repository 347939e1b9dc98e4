"""Shapes: depth and widths, tried with any family."""

from dataclasses import dataclass

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Dims, Shape, Sizing, setting


@dataclass(frozen=True, kw_only=True)
class FixedShape(Shape):
    """A shape given width by width."""

    dim: int = setting(256, low=1, high=2**20, unit="channels")
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
