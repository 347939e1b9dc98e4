"""Norm operators: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), each with or without a learned gain.

The gain may start anywhere: nn.RMSNorm and nn.LayerNorm serve a start of one, their children here any other.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Norm, setting


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """Root-mean-square norm with a learned gain."""

    eps: float = setting(1e-6, above=0)
    """Added to the mean square."""
    gain: Literal["w", "1+w", "none"] = "w"
    """What the normed values are multiplied with: a weight, one plus a weight (Gemma), or nothing."""
    start: float = setting(1.0)
    """Where the gain starts."""

    def build(self, dim: int) -> nn.Module:
        if self.gain == "none":
            return nn.RMSNorm(dim, eps=self.eps, elementwise_affine=False)
        if self.gain == "1+w":
            return OffsetRMSNorm(dim, self.eps, self.start - 1)
        return nn.RMSNorm(dim, eps=self.eps) if self.start == 1.0 else StartedRMSNorm(dim, self.eps, self.start)

    def starting_at(self, gain: float) -> "RMSNorm":
        return _started(self, gain)


class OffsetRMSNorm(nn.Module):
    """h * (1 + weight) / sqrt(mean of squares + eps): weights near zero keep their precision in bfloat16."""

    def __init__(self, dim: int, eps: float, start: float = 0.0) -> None:
        super().__init__()
        self.eps, self.start = eps, start
        self.weight = nn.Parameter(torch.full((dim,), start))

    def reset_parameters(self) -> None:
        """Every weight at its start."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, h: Tensor) -> Tensor:
        return F.rms_norm(h, self.weight.shape, 1 + self.weight, self.eps)


class StartedRMSNorm(nn.RMSNorm):
    """nn.RMSNorm whose gain starts elsewhere than at one."""

    def __init__(self, dim: int, eps: float, start: float) -> None:
        self.start = start
        super().__init__(dim, eps=eps)

    def reset_parameters(self) -> None:
        """Every gain at its start."""
        nn.init.constant_(self.weight, self.start)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """Mean and variance norm with a learned gain and, if asked, a bias."""

    eps: float = setting(1e-5, above=0)
    """Added to the variance."""
    shift: Literal["bias", "none"] = "bias"
    """Whether a learned bias is added; never without a gain."""
    gain: Literal["w", "none"] = "w"
    """What the normed values are multiplied with: a weight, or nothing (OLMo 1, arXiv 2402.00838)."""
    start: float = setting(1.0)
    """Where the gain starts."""

    def build(self, dim: int) -> nn.Module:
        if self.gain == "none":
            return nn.LayerNorm(dim, eps=self.eps, elementwise_affine=False)
        bias = self.shift == "bias"
        if self.start == 1.0:
            return nn.LayerNorm(dim, eps=self.eps, bias=bias)
        return StartedLayerNorm(dim, self.eps, bias, self.start)

    def starting_at(self, gain: float) -> "LayerNorm":
        return _started(self, gain)


class StartedLayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose gain starts elsewhere than at one."""

    def __init__(self, dim: int, eps: float, bias: bool, start: float) -> None:
        self.start = start
        super().__init__(dim, eps=eps, bias=bias)

    def reset_parameters(self) -> None:
        """Every gain at its start, every bias at zero."""
        nn.init.constant_(self.weight, self.start)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _started(norm: RMSNorm | LayerNorm, gain: float) -> RMSNorm | LayerNorm:
    if norm.gain == "none":
        raise RequestError(f"{type(norm).__name__}.gain: none, where a gain has to start at {gain:.3g}")
    return dataclasses.replace(norm, start=gain)
