"""Norm schemes: how a branch joins the residual stream.

Pre-LN (arXiv 2002.04745), Post-LN (arXiv 1706.03762) and LayerNorm Scaling (arXiv 2502.05795).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Concern, Norm, NormScheme, Site


@dataclass(frozen=True, kw_only=True)
class PreNorm(NormScheme):
    """x + branch(norm(x)), and a final norm: the usual choice."""

    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""

    def build(self, site: Site) -> nn.Module:
        return PrePath(self.norm.build(site.dim))

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


@dataclass(frozen=True, kw_only=True)
class LayerNormScaling(NormScheme):
    """Pre-LN whose norm outputs are divided by the square root of the layer number, against the curse of depth.

    Layers count from 1; both branches of a layer share the factor; the final norm is not scaled.
    """

    conflicts: ClassVar[tuple[Concern, ...]] = (
        Concern("ScaledInit", "LayerNorm Scaling with scaled init was worse than either alone (arXiv 2502.05795)"),
    )
    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""

    def build(self, site: Site) -> nn.Module:
        return PrePath(self.norm.build(site.dim), factor=1 / math.sqrt(site.layer + 1))

    def close(self, dim: int) -> nn.Module:
        return self.norm.build(dim)


class PrePath(nn.Module):
    """x + branch(factor * norm(x)); the factor is a constant of the layer, never a tensor."""

    def __init__(self, norm: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.norm, self.factor = norm, factor

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        h = self.norm(x)
        return x + branch(h if self.factor == 1.0 else h * self.factor)


@dataclass(frozen=True, kw_only=True)
class PostNorm(NormScheme):
    """norm(x + branch(x)): the original transformer; needs warm-up."""

    requires: ClassVar[tuple[Concern, ...]] = (
        Concern("warmup", "Post-LN gradients at the last layers are large at the start (arXiv 2002.04745)"),
    )
    norm: Norm = RMSNorm()
    """The operator of every branch; there is no final norm."""
    embedding_norm: Norm | None = None
    """Applied to the embedded tokens (BERT); null: none."""

    def open(self, dim: int) -> nn.Module:
        return nn.Identity() if self.embedding_norm is None else self.embedding_norm.build(dim)

    def build(self, site: Site) -> nn.Module:
        return PostPath(self.norm.build(site.dim))

    def close(self, dim: int) -> nn.Module:
        return nn.Identity()


class PostPath(nn.Module):
    """norm(x + branch(x))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(x + branch(x))
