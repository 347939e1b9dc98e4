"""Gated short convolution as a mixer, attention's equal (LFM2, arXiv 2511.23404)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.context import Context, Kind
from lit_small_lm.nn.neighbours import NeighbourSum
from lit_small_lm.plugin import EVERY_KIND, Linear, Mixer, Site, setting


@dataclass(frozen=True, kw_only=True)
class ShortConv(Mixer):
    """out(c * sum over left neighbours of (b * x)), with b, c and x projected from the input."""

    kinds: ClassVar[tuple[Kind, ...]] = EVERY_KIND

    kernel: int = setting(3, low=1, unit="positions")
    """Taps, the position itself included."""
    dropout: float = setting(0.0, low=0, below=1, unit="probability")
    """On the output, while training."""

    def build(self, site: Site) -> nn.Module:
        return ShortConvMixer(self, site)


class ShortConvMixer(nn.Module):
    """h (B, T, D) -> (B, T, D) through one fused projection, in groups of b, c and x; Canon B spans all three."""

    def __init__(self, spec: ShortConv, site: Site) -> None:
        super().__init__()
        self.dropout = spec.dropout
        groups = site.dims.groups_of(site.dim)
        self.width = site.dim // groups
        self.in_proj = Linear(site.dim, 3 * site.dim, role="qkv", groups=groups)
        self.canon = site.tap("B", 3 * site.dim)
        self.sum = NeighbourSum(site.dim, spec.kernel, site.address)
        self.o_proj = Linear(site.dim, site.dim, role="out")

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        groups = self.canon(self.in_proj(h), ctx).unflatten(-1, (-1, 3, self.width))  # (B, T, G, 3, D/G)
        b, c, x = (part.flatten(-2) for part in groups.unbind(-2))  # (B, T, D) each
        return F.dropout(self.o_proj(c * self.sum(b * x, ctx)), self.dropout, self.training)
