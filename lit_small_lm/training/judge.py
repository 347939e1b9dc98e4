"""Whether an optimizer step is taken: decided on the device before it, on every process alike, without waiting for it.

A step whose loss or gradient is not finite is left out: weights, moments and step counters stay as they are, bit for
bit. The trick: torch's fused optimizers take a tensor `found_inf` (made for fp16), and where it is 1 their kernels
write nothing. Other optimizers get no gradients instead, for which the host has to look at the tensor.

Spikes can be left out the same way: a loss or gradient norm above mean + k sigma of the steps before it, as
OLMo-core's SkipStepOptimizer does it (github.com/allenai/OLMo-core, src/olmo_core/optim/skip_step_optimizer.py).
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.training.optim import JointOptimizer

TAKEN, NOT_FINITE, SPIKE = 0, 1, 2
"""What can become of a step."""


class Judge:
    """Rules on steps, one after another.

    Args:
        sigmas: standard deviations above the mean from which on a step is a spike; None: no step is.
        window: steps that mean and deviation are of; nothing is a spike before half of them are there.
    """

    def __init__(self, sigmas: float | None = None, window: int = 128) -> None:
        self.sigmas, self.window = sigmas, window
        self.seen = 0
        """Steps ruled on."""
        self.history: Tensor | None = None
        """(2, window) the last losses and gradient norms, in a ring; NaN where there is none that is finite."""
        self.verdict: Tensor | None = None
        """TAKEN, NOT_FINITE or SPIKE of the last step, on the device."""

    def rule(self, loss: Tensor, norm: Tensor, overflow_allowed: bool = False) -> Tensor:
        """The verdict on a step.

        Args:
            loss: () of the step, over all processes.
            norm: () of its gradient, before clipping.
            overflow_allowed: whether the gradient may have overflown, as it does while fp16's scale is sought.
        """
        nothing = (loss if overflow_allowed else loss + norm) * 0  # NaN, unless they are finite
        self.verdict = (nothing != 0) * NOT_FINITE
        if self.sigmas is not None:
            spike = self._spikes(torch.stack([loss, norm]).double())
            self.verdict = torch.where(spike & (self.verdict == TAKEN), SPIKE, self.verdict)
        self.seen += 1
        return self.verdict

    def _spikes(self, figures: Tensor) -> Tensor:
        """Whether one of (2,) figures stands out from those before it; they join them then, spikes too."""
        if self.history is None:
            self.history = torch.full((2, self.window), torch.nan, dtype=torch.float64)
        self.history = before = self.history.to(figures.device)
        known = before.isfinite()
        count = known.sum(1)
        mean = before.where(known, 0).sum(1) / count
        deviation = ((before - mean[:, None]).where(known, 0).square().sum(1) / (count - 1)).sqrt()
        spike = (figures > mean + self.sigmas * deviation) & (count >= self.window // 2)
        before[:, self.seen % self.window] = figures.where(figures.isfinite(), torch.nan)
        return spike.any()

    def state_dict(self) -> dict[str, Any]:
        """What later verdicts depend on."""
        return {"seen": self.seen, "history": None if self.history is None else self.history.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; where the window has another length now, from none."""
        self.seen, history = state["seen"], state["history"]
        if history is not None and history.shape[1] == self.window:
            self.history = history.clone()


@dataclasses.dataclass
class Tally:
    """What became of the steps so far, as the host has seen it."""

    not_finite: int = 0
    """Steps left out because loss or gradient was not finite."""
    spikes: int = 0
    """Steps left out because loss or gradient norm stood out."""
    in_a_row: int = 0
    """Steps that were not finite, up to the last one seen."""
    first: int = 0
    """The first of those."""
    flat: int = 0
    """Steps in a row whose gradient was exactly 0."""

    def note(self, step: int, norm: float, verdict: int) -> None:
        """Add a step."""
        self.not_finite += verdict == NOT_FINITE
        self.spikes += verdict == SPIKE
        if verdict == NOT_FINITE and not self.in_a_row:
            self.first = step
        self.in_a_row = self.in_a_row + 1 if verdict == NOT_FINITE else 0
        self.flat = self.flat + 1 if norm == 0 else 0


def hold_back(optimizer: torch.optim.Optimizer, verdict: Tensor) -> None:
    """Make the coming step of an optimizer do nothing unless the verdict is TAKEN."""
    taken = verdict.device.type == "cpu" and verdict.item() == TAKEN  # other devices would be waited for
    others = []
    for part in optimizer.parts if isinstance(optimizer, JointOptimizer) else [optimizer]:
        if vars(part).get("_step_supports_amp_scaling", False):  # as torch's own GradScaler asks
            part.found_inf = None if taken else (verdict != TAKEN).float()
        else:
            others += [parameter for group in part.param_groups for parameter in group["params"]]
    if others and verdict != TAKEN:  # waits for the device
        for parameter in others:
            parameter.grad = None
