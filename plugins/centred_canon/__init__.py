"""Centred Canon layers: taps to both sides, for networks that look both ways (Canon: arXiv 2512.17351).

h'[t] = h[t] + sum over j = 0..3 of w[j] h[t-j] + sum over j = 1..3 of v[j] h[t+j]. The taps to the right begin at zero:
a network begins as the one with causal taps, and takes over the weights of one that was trained with them. They reach
as far as attention may look to the right: to the end of a document, or of a block; under a causal view nowhere.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_small_lm.context import Context, Kind
from lit_small_lm.nn.neighbours import NeighbourSum
from lit_small_lm.plugin import EVERY_KIND, Canon, Site, setting


@dataclass(frozen=True, kw_only=True)
class CentredCanon(Canon):
    """Each position gains a weighted sum of itself and of its neighbours on both sides."""

    kinds: ClassVar[tuple[Kind, ...]] = EVERY_KIND

    kernel: int = setting(4, low=1, unit="positions")
    """Taps to the left, the position itself included."""
    ahead: int = setting(3, low=1, unit="positions")
    """Taps to the right."""

    def build(self, site: Site, width: int) -> nn.Module:
        return CentredSum(NeighbourSum(width, self.kernel, site.address), width, self.ahead)


class CentredSum(nn.Module):
    """h (B, T, C) + sum(h) + the sum over neighbours to the right."""

    def __init__(self, sum: NeighbourSum, width: int, ahead: int) -> None:
        super().__init__()
        self.sum = sum
        self.right = nn.Parameter(torch.zeros(width, ahead))
        """(C, N); column j - 1 belongs to the j-th right neighbour."""
        self.register_load_state_dict_pre_hook(_without_right_taps)

    def reset_parameters(self) -> None:
        """No taps to the right."""
        nn.init.zeros_(self.right)

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        total, right = h + self.sum(h, ctx), self.right.to(h.dtype)
        for j in range(1, right.shape[1] + 1):
            index, exists = ctx.visibility.neighbour(-j)
            found = h.gather(1, index.unsqueeze(-1).expand_as(h))
            total = total + found * exists.unsqueeze(-1) * right[:, j - 1]
        return total


def _without_right_taps(module: CentredSum, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """A network with causal taps has none to the right."""
    if f"{prefix}sum.weight" in state:
        state.setdefault(f"{prefix}right", torch.zeros_like(module.right))
