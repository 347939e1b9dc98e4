"""Low-confidence remasking (LLaDA, arXiv 2502.09992; MaskGIT, arXiv 2202.04200): a fixed number of places a step.

Every place is predicted in each step; all but the most certain stay masked. Certainty is that of the network's own
distribution at a place, before a token is drawn, so that it does not depend on the draw.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_small_lm.plugin import setting
from lit_small_lm.samplers.unmasking import Confident


@dataclass(frozen=True, kw_only=True)
class LowConfidence(Confident):
    """Fills the places that the network is most certain of, so many in every step."""

    tokens: int = setting(1, low=1, unit="tokens")
    """Places filled in each evaluation."""
    by: Literal["probability", "margin", "entropy"] = "probability"
    """What certainty is: the probability of the likeliest token, by how much it exceeds the next one's, or a low
    entropy (Dream, arXiv 2508.15487)."""

    def count(self, uncertainties: Tensor) -> Tensor:
        return uncertainties.new_full(uncertainties.shape[:1], self.tokens)

    def uncertainty(self, probs: Tensor) -> Tensor:
        if self.by == "probability":
            return super().uncertainty(probs)
        if self.by == "margin":
            first, second = probs.topk(2).values.unbind(-1)
            return 1 - (first - second)
        return entropy(probs)


def entropy(probs: Tensor) -> Tensor:
    """probs (M, V) -> entropies (M,) in nats."""
    return torch.special.entr(probs).sum(-1)
