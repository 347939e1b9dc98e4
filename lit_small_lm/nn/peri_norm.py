"""Peri-LN (arXiv 2502.02732): a norm before and a norm after every branch, so that no branch outgrows the stream."""

from dataclasses import dataclass

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site


@dataclass(frozen=True, kw_only=True)
class PeriNorm(NormScheme):
    """x + norm(branch(norm(x))), and a final norm: a branch adds as much at every depth."""

    norm: Norm = RMSNorm()
    """The operator of both sides of a branch, and of the final norm."""
    embedding_norm: Norm | None = None
    """Applied to the embedded tokens; null: none. The paper leaves it open."""

    def open(self, dim: int) -> nn.Module:
        return nn.Identity() if self.embedding_norm is None else self.embedding_norm.build(dim)

    def build(self, site: Site) -> nn.Module:
        return PeriPath(self.norm.build(site.dim), self.norm.build(site.dim))

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


class PeriPath(nn.Module):
    """x + after(branch(before(x)))."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.after(branch(self.before(x)))
