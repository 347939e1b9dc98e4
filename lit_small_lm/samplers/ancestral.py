"""Ancestral sampling of masked diffusion (MDLM, arXiv 2406.07524): the process run backwards in steps of time.

From time t to s < t each mask is filled with probability (alpha(s) - alpha(t)) / (1 - alpha(t)), independently. The
trick: the step at which a place is filled can be drawn at once, so steps in which nothing is filled cost nothing, and
no more evaluations are made than tokens drawn, however fine the steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_small_lm.objectives.noise import LinearNoise
from lit_small_lm.plugin import Noise, setting
from lit_small_lm.samplers.unmasking import Scheduled


@dataclass(frozen=True, kw_only=True)
class Ancestral(Scheduled):
    """Fills places at random times of a noise schedule, all those of a step together."""

    noise: Noise = LinearNoise()
    """The schedule that says how much is filled in each step; it need not be that of the training."""
    steps: int = setting(64, low=1, unit="steps")
    """Steps of time for each block, or for the whole text; 1 fills it at once."""

    def times(self, uniform: Tensor) -> Tensor:
        alpha = self.noise.alpha(grid(self.steps, uniform.device))
        return torch.searchsorted(alpha[1:-1], alpha[0] + (1 - alpha[0]) * uniform, right=True)


def grid(steps: int, device: torch.device) -> Tensor:
    """Times (steps+1,) from 1 to 0 in float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device)
