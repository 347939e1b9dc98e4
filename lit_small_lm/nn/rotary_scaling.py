"""Scalings of rotary frequencies: linear (arXiv 2306.15595) and Llama 3.1's by wavelength (arXiv 2407.21783)."""

import math
from dataclasses import dataclass

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
