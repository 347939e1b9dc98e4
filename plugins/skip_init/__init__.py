"""SkipInit (arXiv 2002.10444) and ReZero (arXiv 2003.04887): one learned number for each branch, small at the start.

x + gain * branch(norm(x)), or without any norm. A branch earns its share of the stream while training, so that a deep
network starts close to the identity. The one trick: the number is a weight without decay, like the gain of a norm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site, setting


@dataclass(frozen=True, kw_only=True)
class SkipInit(NormScheme):
    """x + gain * branch(norm(x)) with one learned gain for each branch, and a final norm."""

    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""
    start: float | None = setting(None)
    """Where every gain starts; null: 1 / sqrt(n_layers)."""

    def build(self, site: Site) -> nn.Module:
        start = site.n_layers**-0.5 if self.start is None else self.start
        return GainedPath(self.norm.build(site.dim), start)

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


@dataclass(frozen=True, kw_only=True)
class ReZero(NormScheme):
    """x + gain * branch(x) with one learned gain for each branch, and no norm anywhere."""

    start: float = setting(0.0)
    """Where every gain starts."""

    def build(self, site: Site) -> nn.Module:
        return GainedPath(nn.Identity(), self.start)

    def close(self, dim: int) -> nn.Module:
        return nn.Identity()


class GainedPath(nn.Module):
    """x + gain * branch(norm(x))."""

    def __init__(self, norm: nn.Module, start: float) -> None:
        super().__init__()
        self.norm, self.start = norm, start
        self.gain = nn.Parameter(torch.full((1,), start))  # sharding refuses parameters without a dimension

    def reset_parameters(self) -> None:
        """The gain at its start."""
        nn.init.constant_(self.gain, self.start)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.gain * branch(self.norm(x))
