"""Norm schemes: how a branch joins the residual stream.

Pre-LN (arXiv 2002.04745), Post-LN (arXiv 1706.03762) and LayerNorm Scaling (arXiv 2502.05795).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Concern, Norm, NormScheme, Site, setting


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
        Concern("ScaledInit", "the two together were worse than LayerNorm Scaling alone (arXiv 2502.05795)"),
        Concern("DepthScaledInit", "its authors ask for an init that does not depend on depth (arXiv 2502.05795)"),
        Concern("CompletePInit", "both rescale branches by depth; no source has tried the two together"),
    )
    norm: Norm = RMSNorm()
    """The operator, also of the final norm."""
    factor_on: Literal["norm", "gain", "branch"] = "norm"
    """What the factor multiplies: the norm's output, as a constant; the norm's learned gain, which starts at it and is
    then free (what later papers compare with); or the branch's output, as a constant (image models)."""
    index: Literal["layer", "branch"] = "layer"
    """What is counted: layers, or branches, two to a layer."""
    power: float = setting(0.5, low=0)
    """The factor is 1 / number^power."""

    def build(self, site: Site) -> nn.Module:
        factor = self.factor(site)
        if self.factor_on == "gain":
            return PrePath(self.norm.starting_at(factor).build(site.dim))
        norm = self.norm.build(site.dim)
        return PrePath(norm, factor) if self.factor_on == "norm" else DampedPath(norm, factor)

    def factor(self, site: Site) -> float:
        """The constant of the branch at `site`."""
        number = site.layer + 1 if self.index == "layer" else 2 * site.layer + 1 + (site.place == "ffn")
        return 1 / number**self.power

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


class DampedPath(nn.Module):
    """x + factor * branch(norm(x)); the factor is a constant of the layer, never a tensor."""

    def __init__(self, norm: nn.Module, factor: float) -> None:
        super().__init__()
        self.norm, self.factor = norm, factor

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.factor * branch(self.norm(x))


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
