"""Parallel decoding by a threshold of confidence (Fast-dLLM, arXiv 2505.22618; LLaDA 2.0, arXiv 2512.15745)."""

from dataclasses import dataclass

from torch import Tensor

from lit_small_lm.plugin import setting
from lit_small_lm.samplers.unmasking import Confident


@dataclass(frozen=True, kw_only=True)
class ConfidenceThreshold(Confident):
    """Fills every place whose likeliest token has more than this probability, and always the most certain one."""

    threshold: float = setting(0.9, low=0, high=1, unit="probability")
    """0 fills a block at once, 1 one place a step."""

    def count(self, uncertainties: Tensor) -> Tensor:
        return (1 - uncertainties > self.threshold).sum(1)
