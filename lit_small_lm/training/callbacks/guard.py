"""What becomes of a run whose loss or gradient is not finite, or stands out: stop, leave steps out, or go back.

`training/judge.py` has left such a step out already, on the device. This callback hears of it when the step's metrics
are fetched, so that nothing waits for the device at every step. Going back and leaving out the data that led there is
PaLM's recipe (arXiv 2204.02311, section 5.1).
"""

import warnings
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.plugin import Batch
from lit_small_lm.sharding import local
from lit_small_lm.training.judge import TAKEN, Judge, Tally
from lit_small_lm.training.lit import LanguageModule

Policy = Literal["stop", "skip", "rewind"]
FLAT = 10
"""Steps in a row with a gradient of exactly 0 that are worth a warning."""
SHOWN = 8
"""Rows that a message names."""


class Seen(NamedTuple):
    """What the host learns of a step."""

    step: int
    loss: float
    norm: float
    verdict: int


class Diverged(RunError):
    """Steps were not finite. `first` was the first of them, `last` the step after which it was known."""

    def __init__(self, text: str, first: int = 0, last: int = 0) -> None:
        super().__init__(text)
        self.first, self.last = first, last
        self.first_line = text.partition(": training diverged")[0]


class Guard(Callback):
    """Keeps steps that are not finite away from weights and checkpoints, and says what follows from them.

    A step that is left out counts and uses up its data; weights, moments, moving averages and router biases stay.

    Args:
        non_finite: stop: the first step whose loss or gradient is not finite ends the run; skip: such steps are left
            out; rewind: they are left out, and after `patience` of them training goes back to the newest checkpoint
            and leaves out the data from there up to the last of them.
        patience: steps in a row that are not finite after which a run that skips ends, and one that rewinds goes back;
            one batch may be at fault for one step, ten in a row mean weights that nothing will mend.
        rewinds: how often a run goes back at most, before it ends.
        spike_sigmas: a step whose loss or gradient norm is more than so many standard deviations above the mean of the
            steps before it is left out, such as 6; null: no step is for that.
        spike_window: steps that mean and deviation are of; nothing is a spike before half of them are there.

    Raises:
        RequestError: a value out of range.
    """

    def __init__(
        self,
        non_finite: Policy = "stop",
        patience: int = 10,
        rewinds: int = 3,
        spike_sigmas: float | None = None,
        spike_window: int = 128,
    ) -> None:
        counts = {"patience": (patience, 1), "rewinds": (rewinds, 1), "spike_window": (spike_window, 4)}
        for name, (value, least) in counts.items():
            if value < least:
                raise RequestError(f"guard.{name}: {value}; allowed: at least {least}")
        if spike_sigmas is not None and not 0 < spike_sigmas < float("inf"):
            raise RequestError(f"guard.spike_sigmas: {spike_sigmas}; allowed: above 0, or null")
        if non_finite not in ("stop", "skip", "rewind"):
            raise RequestError(f"guard.non_finite: {non_finite!r}; allowed: stop, skip, rewind")
        self.non_finite, self.patience, self.rewinds = non_finite, patience, rewinds
        self.judge, self.tally = Judge(spike_sigmas, spike_window), Tally()
        self.rewound = 0
        """How often this run went back."""
        self._rows: dict[int, list[Tensor]] = {}
        """The rows of each step that has not been seen yet."""
        self._first = ""
        """What is known of the first of the steps in a row that were not finite."""

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        if stage == "fit":
            self.refuse_processes(trainer)
            pl_module.judge = self.judge

    def refuse_processes(self, trainer: Trainer) -> None:
        """Raise RequestError if several processes would have to go back together."""
        if self.non_finite == "rewind" and trainer.world_size > 1:
            raise RequestError(
                f"guard.non_finite: rewind with {trainer.world_size} processes; allowed: stop, skip, or one process"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModule, batch: Batch, batch_idx: int) -> None:
        self._rows.setdefault(trainer.global_step + 1, []).append(batch.sample_ids)

    # --------------------------------------------------------------------------------------------------------- seeing
    def note(self, seen: Seen) -> dict[str, float]:
        """Count a step; returns what is to be logged of it."""
        self.tally.note(seen.step, seen.norm, seen.verdict)
        return {} if seen.verdict == TAKEN else {"train/skipped_steps": self.tally.not_finite + self.tally.spikes}

    def act(self, trainer: Trainer, seen: Seen) -> None:
        """Do what is to be done after a step, the same on every process.

        Raises:
            Diverged: the run ends, or goes back.
        """
        rows = self._rows.pop(seen.step, [])
        tally = self.tally
        if tally.flat == FLAT:
            warnings.warn(
                f"step {seen.step}: the gradient has been exactly 0 for {FLAT} steps; nothing is learned", stacklevel=2
            )
        if tally.in_a_row == 1:
            self._first = f"step {seen.step}: train/loss {seen.loss:.4g}, train/grad_norm {seen.norm:.4g}"
            self._first += f" on {named(rows, trainer)}"
        if tally.in_a_row >= (1 if self.non_finite == "stop" else self.patience):
            more = f", and in {tally.in_a_row - 1} after it" if tally.in_a_row > 1 else ""
            raise Diverged(
                f"{self._first}{more}: training diverged; no checkpoint holds it; lower optim.lr, lengthen "
                "schedule.warmup, or guard.non_finite skip",
                tally.first,
                trainer.global_step,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        left_out = {"whose loss or gradient was not finite": self.tally.not_finite, "that stood out": self.tally.spikes}
        for which, count in left_out.items():
            if count and trainer.is_global_zero:
                warnings.warn(
                    f"guard: steps left out, {which}: {count}", stacklevel=1
                )  # the caller is Lightning, which is silenced

    # ----------------------------------------------------------------------------------------------------- checkpoint
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LanguageModule, checkpoint: dict[str, Any]) -> None:
        """Keep what later verdicts depend on. Raises Diverged if a weight or moment is not finite."""
        checkpoint["guard"] = {
            "judge": self.judge.state_dict(),
            "tally": vars(self.tally).copy(),
            "first": self._first,
            "rewound": self.rewound,
        }
        self._refuse_broken(trainer, pl_module)

    def _refuse_broken(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        tensors, device = state_of(trainer, pl_module), trainer.strategy.root_device
        sound = torch.stack([tensor.isfinite().all().to(device) for tensor in tensors.values()]).all()
        broken = trainer.strategy.reduce((~sound).float(), reduce_op="sum")
        if broken > 0:
            names = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
            which = names[0] if names else "a tensor of another process"
            raise Diverged(
                f"step {trainer.global_step}: {which} is not finite: training diverged; no checkpoint holds it; "
                "a lower optim.lr may help"
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LanguageModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("guard")  # None: written without a guard
        if trainer.state.fn != "fit" or state is None:
            return
        self.judge.load_state_dict(state["judge"])
        self.tally, self._first = Tally(**state["tally"]), state["first"]
        self.rewound = max(self.rewound, state["rewound"])


def named(rows: list[Tensor], trainer: Trainer) -> str:
    """The rows of a step over all processes, in words; every process has to ask."""
    if not rows:
        return "rows that are not known any more"
    mine = torch.cat(rows)
    found = sorted(set(trainer.strategy.all_gather(mine).flatten().tolist()))
    more = f", ... ({len(found)} in all)" if len(found) > SHOWN else ""
    return f"training rows {', '.join(map(str, found[:SHOWN]))}{more}"


def state_of(trainer: Trainer, module: LanguageModule) -> dict[str, Tensor]:
    """This process's part of every weight, buffer, moment and average, by name."""
    found = dict(module.state_dict())
    for name, parameter in module.named_parameters():
        for optimizer in trainer.optimizers:
            for what, value in optimizer.state.get(parameter, {}).items():
                found[f"{what} of {name}"] = value
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            found |= {f"average of {name}": value for name, value in callback._average_model.named_parameters()}
    tensors = {name: local(value) for name, value in found.items() if isinstance(value, Tensor)}
    return {name: value for name, value in tensors.items() if value.is_floating_point()}
