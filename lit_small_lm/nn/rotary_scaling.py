"""Scalings of rotary frequencies: linear (arXiv 2306.15595), Llama 3.1's by wavelength (arXiv 2407.21783), and YaRN's
by the number of a pair (arXiv 2309.00071)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import RotaryScaling, setting


@dataclass(frozen=True, kw_only=True)
class LinearScaling(RotaryScaling):
    """Every frequency divided by one factor: positions are interpolated."""

    factor: float = setting(8.0, low=1)
    """How many times longer texts become readable."""

    def frequencies(self, plain: Tensor) -> Tensor:
        return plain / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RotaryScaling):
    """Long wavelengths are stretched by a factor, short ones are kept, and those between pass over smoothly."""

    factor: float = setting(8.0, low=1)
    """How many times the long wavelengths are stretched."""
    low_freq_factor: float = setting(1.0, above=0)
    """Wavelengths above `original_length` over this one are stretched in full."""
    high_freq_factor: float = setting(4.0, above=0)
    """Wavelengths below `original_length` over this one are kept; above `low_freq_factor`."""
    original_length: int = setting(8192, low=1, unit="positions")
    """The length of the texts of the pre-training."""

    def frequencies(self, plain: Tensor) -> Tensor:
        if self.high_freq_factor <= self.low_freq_factor:
            raise RequestError(
                f"scaling.high_freq_factor: {self.high_freq_factor}; allowed: above low_freq_factor "
                f"{self.low_freq_factor}"
            )
        turns = self.original_length * plain / (2 * math.pi)  # how often each pair turns within the original length
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return kept * plain + (1 - kept) * plain / self.factor


@dataclass(frozen=True, kw_only=True)
class YarnScaling(RotaryScaling):
    """Slow pairs are stretched by a factor, fast ones are kept, and those between pass over linearly in their number.

    YaRN's temperature is not part of it: give it as the attention's `scale`.
    """

    factor: float = setting(4.0, low=1)
    """How many times the slow pairs are stretched."""
    original_length: int = setting(4096, low=1, unit="positions")
    """The length of the texts of the pre-training."""
    fast_turns: float = setting(32.0, above=0, unit="turns")
    """Pairs that turn more often within `original_length` are kept; above `slow_turns`."""
    slow_turns: float = setting(1.0, above=0, unit="turns")
    """Pairs that turn less often within `original_length` are stretched in full."""
    borders: Literal["whole", "exact"] = "whole"
    """Whether the passage begins and ends at whole numbers of pairs, as its authors have it."""

    def frequencies(self, plain: Tensor) -> Tensor:
        if self.fast_turns <= self.slow_turns:
            raise RequestError(f"scaling.fast_turns: {self.fast_turns}; allowed: above slow_turns {self.slow_turns}")
        if len(plain) == 1:  # the fastest pair is always kept
            return plain
        first, last = self._border(plain, self.fast_turns), self._border(plain, self.slow_turns)
        if self.borders == "whole":
            first, last = first.floor(), last.ceil()
        first, last = first.clamp(min=0), last.clamp(max=2 * len(plain) - 1)
        number = torch.arange(len(plain), device=plain.device, dtype=plain.dtype)
        stretched = ((number - first) / (last - first).clamp(min=1e-3)).clamp(0, 1)
        return (1 - stretched) * plain + stretched * plain / self.factor

    def _border(self, plain: Tensor, turns: float) -> Tensor:
        """The number, with a fraction, of the pair that turns this often within the original length."""
        return math.log(self.original_length / (turns * 2 * math.pi)) / -plain[1].log()
