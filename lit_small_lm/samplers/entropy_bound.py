"""Entropy-bounded unmasking (arXiv 2505.24857): as many places at once as their joint error may cost.

Drawing places independently errs by at most the sum of their entropies but the largest; the places of least entropy
are taken as long as that sum stays within the bound.
"""

from dataclasses import dataclass

from torch import Tensor

from lit_small_lm.plugin import setting
from lit_small_lm.samplers.low_confidence import entropy
from lit_small_lm.samplers.unmasking import Confident


@dataclass(frozen=True, kw_only=True)
class EntropyBound(Confident):
    """Fills the places of least entropy together, up to a bound of their entropies' sum without the largest."""

    bound: float = setting(0.1, low=0, unit="nats")
    """0 fills one place a step, and those that are certain beside it."""

    def uncertainty(self, probs: Tensor) -> Tensor:
        return entropy(probs)

    def count(self, uncertainties: Tensor) -> Tensor:
        return (uncertainties.cumsum(1) - uncertainties <= self.bound).sum(1)
