"""Parallel decoding by a factor of confidence (Fast-dLLM, arXiv 2505.22618).

The n most certain places are filled together as long as (n + 1) times what the n-th lacks of certainty stays below the
factor. At factor 1 and temperature 0 the tokens are then the likeliest ones of the joint distribution, too.
"""

from dataclasses import dataclass

from torch import Tensor

from lit_small_lm.plugin import setting
from lit_small_lm.samplers.unmasking import Confident


@dataclass(frozen=True, kw_only=True)
class ConfidenceFactor(Confident):
    """Fills as many places at once as are certain for their number."""

    factor: float = setting(1.0, low=0)
    """Larger fills more at once; 0 fills one place a step."""

    def count(self, uncertainties: Tensor) -> Tensor:
        place = uncertainties.new_ones(uncertainties.shape).cumsum(1)  # (B, W) 1, 2, 3, ...
        return ((place + 1) * uncertainties < self.factor).sum(1)
