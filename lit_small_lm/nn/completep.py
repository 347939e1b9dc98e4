"""CompleteP (arXiv 2505.01618): settings tuned on a small network stay right for a wider and deeper one.

With m the width and l the depth relative to the small network's: branches are divided by l^alpha, hidden weights start
smaller by sqrt(m) and learn slower by m l^(1 - alpha), with a decay larger by m, and the head's input is divided by m.
Gradients shrink by m, those of branches by l^alpha more, and Adam's `eps` shrinks with them. The init is one half of it
and the norm scheme the other. Attention keeps 1 / sqrt(head_dim), as head_dim should not grow; the final norm is scaled
like those of branches, whose role it has.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Concern, Dims, Init, Norm, NormScheme, Site, setting

OUTSIDE = ("embedding", "positions", "head")
"""Roles of weights whose rate and deviation do not depend on width or depth."""
NARROW = ("norm", "bias", "convolution")
"""Roles of weights whose outputs sum over no more inputs in a wider network: their rate depends on depth alone."""
HALF = "it is one half of CompleteP; without the other nothing transfers (arXiv 2505.01618)"


@dataclass(frozen=True, kw_only=True)
class CompletePInit(Init):
    """Deviation, learning rate and weight decay of each role by width and depth relative to a small network."""

    requires: ClassVar[tuple[Concern, ...]] = (Concern("CompletePNorm", HALF),)
    std_dev: float = setting(0.02, above=0)
    """Standard deviation in the small network."""
    base_dim: int = setting(256, low=1, unit="channels")
    """Width of the small network."""
    base_layers: int = setting(2, low=1, unit="layers")
    """Depth of the small network."""
    alpha: float = setting(1.0, low=0.5, high=1)
    """The exponent of depth; 1 in the paper, 0.5 in its forerunners."""

    def std(self, role: str, dims: Dims) -> float:
        return self.std_dev if role in OUTSIDE else self.std_dev * (dims.dim / self.base_dim) ** -0.5

    def decays(self, role: str, dims: Dims) -> float:
        own = super().decays(role, dims)
        return own if role in (*OUTSIDE, *NARROW) else own * dims.dim / self.base_dim

    def lr_scale(self, role: str, dims: Dims) -> float:
        if role in OUTSIDE:
            return 1.0
        deeper = (dims.n_layers / self.base_layers) ** (self.alpha - 1)
        return deeper if role in NARROW else deeper * self.base_dim / dims.dim

    def eps_scale(self, role: str, dims: Dims) -> float:
        narrower = self.base_dim / dims.dim
        return narrower if role in OUTSIDE else narrower * (dims.n_layers / self.base_layers) ** -self.alpha


@dataclass(frozen=True, kw_only=True)
class CompletePNorm(NormScheme):
    """x + branch(norm(x)) / (n_layers / base_layers)^alpha, and a final norm divided by dim / base_dim."""

    requires: ClassVar[tuple[Concern, ...]] = (Concern("CompletePInit", HALF),)
    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""
    base_dim: int = setting(256, low=1, unit="channels")
    """Width of the small network, as in the init."""
    base_layers: int = setting(2, low=1, unit="layers")
    """Depth of the small network, as in the init."""
    alpha: float = setting(1.0, low=0.5, high=1)
    """The exponent of depth, as in the init."""

    def build(self, site: Site) -> nn.Module:
        return DividedPath(self.norm.build(site.dim), self.divisor(site))

    def divisor(self, site: Site) -> float:
        """What the output of the branch at `site` is divided by."""
        return (site.n_layers / self.base_layers) ** self.alpha

    def close(self, dim: int) -> nn.Module:
        return DividedNorm(self.norm.build(dim), dim / self.base_dim)


class DividedPath(nn.Module):
    """x + branch(norm(x)) / divisor."""

    def __init__(self, norm: nn.Module, divisor: float) -> None:
        super().__init__()
        self.norm, self.divisor = norm, divisor

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + branch(self.norm(x)) / self.divisor


class DividedNorm(nn.Module):
    """norm(x) / divisor."""

    def __init__(self, norm: nn.Module, divisor: float) -> None:
        super().__init__()
        self.norm, self.divisor = norm, divisor

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) / self.divisor
