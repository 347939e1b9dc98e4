"""Norm operators: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450)."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lit_small_lm.plugin import Norm, setting


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """Root-mean-square norm with a learned gain."""

    eps: float = setting(1e-6, above=0)
    """Added to the mean square."""

    def build(self, dim: int) -> nn.Module:
        return nn.RMSNorm(dim, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """Mean and variance norm with a learned gain and, if asked, a bias."""

    eps: float = setting(1e-5, above=0)
    """Added to the variance."""
    shift: Literal["bias", "none"] = "bias"
    """Whether a learned bias is added."""

    def build(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim, eps=self.eps, bias=self.shift == "bias")
