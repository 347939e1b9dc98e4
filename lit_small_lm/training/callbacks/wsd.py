"""Warmup-Stable-Decay (MiniCPM, arXiv 2404.06395): the learning rate as a pure function of the step.

Constant is `decay: 0`; cosine is `decay: 1.0, decay_shape: cosine`. The base rate comes from `Optim`, never from the
optimizer's state, so a resumed or branched run follows the schedule it was asked for.
"""

import math
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_small_lm.errors import RequestError, warn_or_refuse

DecayShape = Literal["linear", "cosine", "1-sqrt", "exponential"]


class WSDSchedule(Callback):
    """Warm-up to the base learning rate, hold it, decay.

    Args:
        warmup: steps of linear warm-up; a fraction of the run if below 1.
        decay: steps of decay at the end; a fraction of the run if below 1 or written 1.0; 0 keeps the rate constant.
        decay_shape: how the rate falls: linear, cosine, 1-sqrt (arXiv 2405.18392) or exponential.
        floor: the rate at the end of the decay, as a share of the base rate.

    Raises:
        RequestError: a value out of range, or an exponential decay without a floor.
    """

    def __init__(
        self,
        warmup: int | float = 0.02,
        decay: int | float = 0.2,
        decay_shape: DecayShape = "1-sqrt",
        floor: float = 0.0,
    ) -> None:
        for name, value in (("warmup", warmup), ("decay", decay)):
            if not math.isfinite(value) or value < 0 or (isinstance(value, float) and value > 1 and value % 1):
                raise RequestError(f"schedule.{name}: {value}; allowed: whole steps, or a fraction from 0 to 1.0")
        if not 0 <= floor <= 1:
            raise RequestError(f"schedule.floor: {floor}; allowed: 0 to 1")
        if decay_shape == "exponential" and decay and floor == 0:
            raise RequestError("schedule.floor: 0 with decay_shape exponential; allowed: above 0, at most 1")
        self.warmup, self.decay, self.decay_shape, self.floor = warmup, decay, decay_shape, floor

    def warmup_steps(self, total: int) -> int:
        """Steps of warm-up in a run of `total` steps."""
        return min(total, in_steps(self.warmup, total))

    def decay_start(self, total: int) -> int:
        """The first step (from 0) of the decay in a run of `total` steps; `total` if there is none."""
        return max(self.warmup_steps(total), total - in_steps(self.decay, total))

    def factor(self, step: int, total: int) -> float:
        """The share of the base rate for optimizer step `step` (from 0) of `total`."""
        warmup, start = self.warmup_steps(total), self.decay_start(total)
        if step < warmup:
            return (step + 1) / warmup
        if step < start:
            return 1.0
        done = min(1.0, (step - start) / max(1, total - start))
        if self.decay_shape == "exponential":
            return self.floor**done
        left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "1-sqrt": 1 - math.sqrt(done)}
        return self.floor + (1 - self.floor) * left[self.decay_shape]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Report a norm scheme that needs warm-up and gets none, or what the run is too short for."""
        if stage != "fit":
            return
        scheme, steps = pl_module.backbone.norm, trainer.max_steps
        if 0 < steps < in_steps(self.warmup, steps):
            text = f"schedule.warmup: {self.warmup} steps with trainer.max_steps {steps}"
            warn_or_refuse(f"{text}; the learning rate does not reach optim.lr", "warning")
        for concern in scheme.requires:
            if concern.about == "warmup" and not self.warmup:
                text = f"schedule.warmup: 0 with {type(scheme).__name__}: {concern.why}"
                warn_or_refuse(text, concern.level)
        ramp = scheme.ramp(pl_module.backbone.whole(pl_module.dims).n_layers)
        if 0 < steps < ramp:
            text = f"trainer.max_steps: {steps} with {type(scheme).__name__}, which fades branches in until step {ramp}"
            warn_or_refuse(f"{text}; what is saved counts them in full", "warning")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        factor = self.factor(trainer.global_step, trainer.max_steps)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = pl_module.optim.lr * group["lr_scale"] * factor


def in_steps(amount: int | float, total: int) -> int:
    """A number of steps given as steps, or as a fraction of `total` (below 1, or the float 1.0)."""
    fraction = amount < 1 or (isinstance(amount, float) and amount == 1.0)
    return round(amount * total) if fraction else int(amount)
