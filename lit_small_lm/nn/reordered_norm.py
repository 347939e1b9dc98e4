"""OLMo 2's order of norms (arXiv 2501.00656): a branch reads the stream as it is, and its output is normed."""

from dataclasses import dataclass

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site


@dataclass(frozen=True, kw_only=True)
class ReorderedNorm(NormScheme):
    """x + norm(branch(x)), and a final norm."""

    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""

    def build(self, site: Site) -> nn.Module:
        return ReorderedPath(self.norm.build(site.dim))

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


class ReorderedPath(nn.Module):
    """x + norm(branch(x))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.norm(branch(x))
