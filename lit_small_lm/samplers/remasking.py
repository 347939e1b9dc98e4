"""Remasking diffusion (ReMDM, arXiv 2503.00307): tokens that were drawn may be masked again and drawn anew.

From time t to s a filled place is emptied with probability sigma, and an open one filled with probability
(alpha(s) - (1 - sigma) alpha(t)) / (1 - alpha(t)), so that at each time as much is open as without remasking, for every
sigma up to min(1, (1 - alpha(s)) / alpha(t)). More steps then mean better text, past one a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_small_lm.objectives.noise import LinearNoise
from lit_small_lm.plugin import Frame, Noise, setting
from lit_small_lm.samplers.ancestral import grid
from lit_small_lm.samplers.asking import Asker
from lit_small_lm.samplers.canvas import SamplingCanvas
from lit_small_lm.samplers.unmasking import Unmasking, possible


@dataclass(frozen=True, kw_only=True)
class Remasking(Unmasking):
    """Runs the process backwards in steps of time, and takes some of what was drawn back in each."""

    noise: Noise = LinearNoise()
    """The schedule that says how much is open at each time."""
    steps: int = setting(64, low=1, unit="steps")
    """Steps of time for each block, or for the whole text; an evaluation each, unless nothing is filled."""
    remasked: float = setting(0.1, low=0, high=1, unit="probability")
    """How likely a filled place is emptied in a step, as `bounded_by` says; 0: ancestral sampling."""
    bounded_by: Literal["cap", "share"] = "cap"
    """How that is kept within what the schedule allows: cut off there, or as a share of it."""

    def filled(self, canvas: SamplingCanvas, asker: Asker, columns: slice, key: int) -> Iterator[Frame]:
        places, last = canvas.open_in(columns), self.steps - 1
        for step, (again, fill) in enumerate(self.rates(canvas.tokens.device).tolist()):
            uniform, open = canvas.uniform(key, "step", step), canvas.open_in(columns)
            emptied, chosen = places & ~open & (uniform < again), open & (uniform < fill)
            if chosen.any():
                logits = possible(asker.logits(chosen, columns), canvas, chosen)
                drawn = canvas.uniform(key, "sample", step)[chosen]
                canvas.fill(chosen, self.drawn(logits, drawn))
            canvas.reopen(emptied)
            if step == last:
                canvas.close()
            if step == last or chosen.any():
                yield canvas.frame(asker.nfe, changing=None if step == last else places)

    def rates(self, device: torch.device) -> Tensor:
        """(steps, 2) the probabilities of emptying a filled place and of filling an open one, step by step."""
        alpha = self.noise.alpha(grid(self.steps, device))
        alpha[-1] = 1  # nothing is left open, whatever the schedule
        t, s = alpha[:-1], alpha[1:]
        most = ((1 - s) / t.clamp(min=1e-300)).clamp(max=1)
        again = most.clamp(max=self.remasked) if self.bounded_by == "cap" else self.remasked * most
        return torch.stack([again, (s - (1 - again) * t) / (1 - t)], dim=1)
