"""Bounded functions in the place of norms: DyT (arXiv 2503.10622) and Derf (arXiv 2512.10938).

Neither looks at any statistic: a learned slope squashes each value by itself, where a norm divides by the deviation of
its position. In language models DyT was worse than RMSNorm in every comparison found; give the embedding a scale
(`backbone.embedding_scale sqrt_dim`), as both papers do, or the first functions see values near zero.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_small_lm.plugin import Norm, setting


@dataclass(frozen=True, kw_only=True)
class DyT(Norm):
    """Dynamic tanh: gain * tanh(slope * h) + bias, with one learned slope."""

    slope: float = setting(0.5, above=0)
    """Where the slope starts; the paper takes 0.8 before attention and 0.2 elsewhere at 4096 channels."""
    start: float = setting(1.0)
    """Where the gain starts."""

    def build(self, dim: int) -> nn.Module:
        return TanhNorm(dim, self.slope, self.start)

    def starting_at(self, gain: float) -> "DyT":
        return dataclasses.replace(self, start=gain)


@dataclass(frozen=True, kw_only=True)
class Derf(Norm):
    """Dynamic error function: gain * erf(slope * h + offset) + bias, with one learned slope and one learned offset."""

    slope: float = setting(0.5, above=0)
    """Where the slope starts; the offset starts at zero."""
    start: float = setting(1.0)
    """Where the gain starts."""

    def build(self, dim: int) -> nn.Module:
        return ErfNorm(dim, self.slope, self.start)

    def starting_at(self, gain: float) -> "Derf":
        return dataclasses.replace(self, start=gain)


class TanhNorm(nn.Module):
    """weight * tanh(slope * h) + bias."""

    def __init__(self, dim: int, slope: float, start: float) -> None:
        super().__init__()
        self.starts = {"slope": slope, "weight": start, "bias": 0.0}
        self.slope = nn.Parameter(torch.empty(1))  # sharding refuses parameters without a dimension
        self.weight, self.bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every parameter at its start."""
        for name, value in self.starts.items():
            nn.init.constant_(self.get_parameter(name), value)

    def forward(self, h: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.slope * h) + self.bias


class ErfNorm(TanhNorm):
    """weight * erf(slope * h + offset) + bias."""

    def __init__(self, dim: int, slope: float, start: float) -> None:
        super().__init__(dim, slope, start)
        self.starts["offset"] = 0.0
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> Tensor:
        return self.weight * torch.erf(self.slope * h + self.offset) + self.bias
