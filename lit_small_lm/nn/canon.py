"""Canon layers (Physics of Language Models part 4.1, arXiv 2512.17351).

h'[t] = h[t] + sum over j = 0..3 of w[j] * h[t-j], channel by channel: no bias, no activation. Unlike the authors'
code, a tap never reaches into another document of a packed row, and chunked decoding keeps its left context.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lit_small_lm.context import Context, Kind
from lit_small_lm.nn.neighbours import NeighbourSum
from lit_small_lm.plugin import EVERY_KIND, Canon, Site, setting


@dataclass(frozen=True, kw_only=True)
class CausalCanon(Canon):
    """The paper's Canon layer: each position gains a weighted sum of itself and its left neighbours."""

    kinds: ClassVar[tuple[Kind, ...]] = EVERY_KIND

    kernel: int = setting(4, low=1, unit="positions")
    """Taps, the position itself included."""

    def build(self, site: Site, width: int) -> nn.Module:
        return ResidualSum(NeighbourSum(width, self.kernel, site.address))


class ResidualSum(nn.Module):
    """h + sum(h)."""

    def __init__(self, sum: NeighbourSum) -> None:
        super().__init__()
        self.sum = sum

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        return h + self.sum(h, ctx)
