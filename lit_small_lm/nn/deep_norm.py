"""DeepNorm (DeepNet, arXiv 2203.00555): Post-LN whose stream weighs more and whose branches start smaller, by depth.

The two constants bound what one update can change in the whole network; they are those of a decoder without encoder.
Other published code has the exponent of `beta` with the wrong sign, and one `alpha` for every depth.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Concern, Norm, NormScheme, Site

DOWNSCALED = ("v", "out", "gate_up", "up", "down")
"""Roles of weights that start smaller: values, and everything after them; queries and keys do not."""


@dataclass(frozen=True, kw_only=True)
class DeepNorm(NormScheme):
    """norm(alpha x + branch(x)) with alpha = (2 n_layers)^(1/4), and branch weights times (8 n_layers)^(-1/4)."""

    conflicts: ClassVar[tuple[Concern, ...]] = (
        Concern("ScaledInit", "DeepNorm makes the same weights smaller by depth itself (arXiv 2203.00555)"),
        Concern("DepthScaledInit", "DeepNorm makes the same weights smaller by depth itself (arXiv 2203.00555)"),
        Concern("ZeroOutInit", "DeepNorm's bound is for branches that start at (8 n_layers)^(-1/4) (arXiv 2203.00555)"),
    )
    norm: Norm = RMSNorm()
    """The operator of every branch; there is no final norm."""

    def build(self, site: Site) -> nn.Module:
        return DeepPath(self.norm.build(site.dim), alpha=(2 * site.n_layers) ** 0.25)

    def close(self, dim: int) -> nn.Module:
        return nn.Identity()

    def branch_init(self, site: Site, role: str) -> float:
        return (8 * site.n_layers) ** -0.25 if role in DOWNSCALED else 1.0


class DeepPath(nn.Module):
    """norm(alpha * x + branch(x))."""

    def __init__(self, norm: nn.Module, alpha: float) -> None:
        super().__init__()
        self.norm, self.alpha = norm, alpha

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(self.alpha * x + branch(x))
