"""Sandwich-LN (CogView, arXiv 2105.13290): LayerNorm before and after every branch.

x + norm(branch(norm(x))), which bounds what a branch can add to the stream. Peri-LN later gave the same form another
name and a theory; with the same operator the two are one function, and a test says so.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site


@dataclass(frozen=True, kw_only=True)
class SandwichNorm(NormScheme):
    """x + norm(branch(norm(x))), and a final norm; PeriNorm under its first name, with LayerNorm."""

    norm: Norm = LayerNorm()
    """The operator of both sides of a branch, and of the final norm."""

    def build(self, site: Site) -> nn.Module:
        return SandwichPath(self.norm.build(site.dim), self.norm.build(site.dim))

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


class SandwichPath(nn.Module):
    """x + after(branch(before(x)))."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.after(branch(self.before(x)))
