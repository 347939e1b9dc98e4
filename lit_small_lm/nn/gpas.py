"""GPAS (arXiv 2506.22049): Pre-LN whose stream is scaled down after every branch, while its gradient is not.

x - silu(gate) * stopgrad(x): the values shrink by a learned share, the gradient passes as if they had not. One gate
serves both branches of a layer: the mixer's path owns it and hands the share on in the carry.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site


@dataclass(frozen=True, kw_only=True)
class GPAS(NormScheme):
    """y = x + branch(norm(x)), then y - silu(gate) * y with one gate a layer, and a final norm; starts as Pre-LN."""

    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""

    def build(self, site: Site) -> nn.Module:
        norm = self.norm.build(site.dim)
        return GatedPath(norm) if site.place == "mixer" else SharedGatePath(norm)

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


class GatedPath(nn.Module):
    """x -> (shrunk(x + branch(norm(x))), share), where the share is silu of this module's gate."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.gate = nn.Parameter(torch.zeros(1))  # sharding refuses parameters without a dimension

    def reset_parameters(self) -> None:
        """A closed gate: nothing is scaled down."""
        nn.init.zeros_(self.gate)

    def forward(self, x: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:
        share = F.silu(self.gate)
        return shrunk(x + branch(self.norm(x)), share), share


class SharedGatePath(nn.Module):
    """(x, share) -> shrunk(x + branch(norm(x)))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, carry: tuple[Tensor, Tensor], branch: Branch) -> Tensor:
        x, share = carry
        return shrunk(x + branch(self.norm(x)), share)


def shrunk(x: Tensor, share: Tensor) -> Tensor:
    """x (B, T, D) times 1 - share (1,) in value, with the gradient of x as it is."""
    return x - share * x.detach()
