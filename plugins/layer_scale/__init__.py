"""LayerScale: a learned gain for every channel of every branch, small at the start (CaiT, arXiv 2103.17239).

x + gamma * branch(norm(x)). With a small gamma a deep network starts close to the identity, and each channel of each
branch earns its share of the stream. The one trick: gains are weights without decay, like those of norms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site, setting


@dataclass(frozen=True, kw_only=True)
class LayerScale(NormScheme):
    """x + gamma * branch(norm(x)) with a learned gamma for each channel, and a final norm."""

    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""
    start: float = setting(0.1, above=0)
    """Where every gamma starts; the paper takes 0.1 up to 18 layers, 1e-5 for 24, 1e-6 beyond."""

    def build(self, site: Site) -> nn.Module:
        return LayerScalePath(self.norm.build(site.dim), site.dim, self.start)

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


class LayerScalePath(nn.Module):
    """x + gamma * branch(norm(x))."""

    def __init__(self, norm: nn.Module, dim: int, start: float) -> None:
        super().__init__()
        self.norm, self.start = norm, start
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every gain at its start."""
        nn.init.constant_(self.gamma, self.start)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.gamma * branch(self.norm(x))
