"""Norm operators: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.plugin import Norm, setting


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """Root-mean-square norm with a learned gain."""

    eps: float = setting(1e-6, above=0)
    """Added to the mean square."""
    gain: Literal["w", "1+w"] = "w"
    """What the normed values are multiplied with: a weight that starts at one, or one plus a weight that starts at zero
    (Gemma)."""

    def build(self, dim: int) -> nn.Module:
        return nn.RMSNorm(dim, eps=self.eps) if self.gain == "w" else OffsetRMSNorm(dim, self.eps)


class OffsetRMSNorm(nn.Module):
    """h * (1 + weight) / sqrt(mean of squares + eps): weights near zero keep their precision in bfloat16."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """No gain at the start."""
        nn.init.zeros_(self.weight)

    def forward(self, h: Tensor) -> Tensor:
        return F.rms_norm(h, self.weight.shape, 1 + self.weight, self.eps)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """Mean and variance norm with a learned gain and, if asked, a bias."""

    eps: float = setting(1e-5, above=0)
    """Added to the variance."""
    shift: Literal["bias", "none"] = "bias"
    """Whether a learned bias is added."""

    def build(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim, eps=self.eps, bias=self.shift == "bias")
