"""Attention residuals (arXiv 2603.15031): a branch reads a weighted mean of everything written before it.

In the place of one running sum the carry holds the embedding and what the branches put out; each branch weighs them by
a softmax over depth, position by position, of a learned query against each normed source. Queries start at zero, so
that a network starts with plain means. A source may be the sum of several branches, which bounds how many are kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site, setting

Sources = tuple[Tensor, ...]
"""The embedding, and what branches have put out, (B, T, D) each."""


@dataclass(frozen=True, kw_only=True)
class AttentionResiduals(NormScheme):
    """branch(norm(m)) with m the mean of all sources, weighted by a softmax over depth; a last such mean, normed, ends
    it. Time and memory grow with the square of the number of sources."""

    norm: Norm = RMSNorm()
    """The operator before each branch, of the sources when they are weighed, and of the end."""
    branches_a_source: int = setting(1, low=1, unit="branches")
    """Branches, two to a layer, whose outputs are summed into one source; the paper's block form has about eight
    sources in all."""

    def open(self, dim: int) -> nn.Module:
        return OpenSources()

    def build(self, site: Site) -> nn.Module:
        read = DepthMean(self.norm.build(site.dim), site.dim)
        number = 2 * site.layer + (site.place == "ffn")
        path = NewSourcePath if number % self.branches_a_source == 0 else LastSourcePath
        return path(read, self.norm.build(site.dim))

    def close(self, dim: int) -> nn.Module:
        return nn.Sequential(DepthMean(self.norm.build(dim), dim), self.norm.build(dim))


class OpenSources(nn.Module):
    """x -> (x,)."""

    def forward(self, x: Tensor) -> Sources:
        return (x,)


class DepthMean(nn.Module):
    """N sources (B, T, D) -> their mean (B, T, D), weighted by softmax over N of query . norm(source)."""

    def __init__(self, norm: nn.Module, dim: int) -> None:
        super().__init__()
        self.norm = norm
        self.query = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """Equal weights."""
        nn.init.zeros_(self.query)

    def forward(self, sources: Sources) -> Tensor:
        scores = torch.stack([self.norm(source) @ self.query for source in sources])  # (N, B, T)
        weights = torch.softmax(scores, dim=0).unsqueeze(-1)  # (N, B, T, 1)
        return sum(weight * source for weight, source in zip(weights.unbind(0), sources, strict=True))


class NewSourcePath(nn.Module):
    """(sources) -> (sources, branch(norm(mean of them)))."""

    def __init__(self, read: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.read, self.norm = read, norm

    def forward(self, sources: Sources, branch: Branch) -> Sources:
        return (*sources, branch(self.norm(self.read(sources))))


class LastSourcePath(NewSourcePath):
    """(sources, last) -> (sources, last + branch(norm(mean of all)))."""

    def forward(self, sources: Sources, branch: Branch) -> Sources:
        *earlier, last, new = super().forward(sources, branch)
        return (*earlier, last + new)
