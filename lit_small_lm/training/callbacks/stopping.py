"""Stops a run between two steps, and saves it first: for a signal, a dead loader worker, data that cannot be read."""

import signal
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_small_lm.errors import RunError
from lit_small_lm.signals import asked, note_lost_workers, until_the_step_ends
from lit_small_lm.training.callbacks.checkpoints import Checkpoints, validation_due
from lit_small_lm.training.idle_hooks import call_idle


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP stopped the run, after a checkpoint of the last finished step was written."""

    def __init__(self, number: int, step: int, run_dir: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.step, self.run_dir = number, step, run_dir


class Stopping(Callback):
    """Does at the end of a step, or of the validation after it, what signals have asked for; all processes alike.

    Args:
        checkpoints: what saves.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._within = ExitStack()
        self._agreed: Tensor | None = None
        """What was asked for at the step before, on a device that nothing waits for."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._within.enter_context(until_the_step_ends())
        self._agreed = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._within.close()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        note_lost_workers()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            end, save, lost = self._asked(trainer)
            later = validation_due(trainer) and not lost
            if end or save or lost:
                self.checkpoints.save_now(trainer, again_after_validation=later)
            if not later:
                self._stop(trainer, end, lost)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agreed = None
            end, save, lost = self._asked(trainer)
            if end or save or lost:
                self.checkpoints.save_now(trainer)
            self._stop(trainer, end, lost)

    def _stop(self, trainer: Trainer, end: int, lost: int) -> None:
        asked.save = False
        if (lost or end) and trainer.world_size > 1:
            trainer.strategy.barrier("saved")  # launchers end all as soon as one has ended
        if lost:
            raise RunError(f"{asked.lost_worker or 'a loader worker of another process died'}")
        if end and trainer.global_step < trainer.max_steps:  # after the last step there is nothing to go on with
            raise Interrupted(end, trainer.global_step, self.checkpoints.run_dir)

    def _asked(self, trainer: Trainer) -> list[int]:
        """Signal that asks to end, whether to save, whether a loader worker died: of any process.

        On a GPU the answer is that of the step before, which has arrived already, so that nothing waits for it.
        """
        mine = [int(asked.end), int(asked.save), int(bool(asked.lost_worker))]
        if trainer.world_size == 1:
            return mine
        there = torch.tensor(mine, dtype=torch.float32).to(trainer.strategy.root_device)
        now = trainer.strategy.reduce(there, reduce_op="max")
        answer = now if not now.is_cuda else self._agreed if self._agreed is not None else torch.zeros_like(now)
        self._agreed = now
        return answer.int().tolist()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step of a run whose next batch could not be had; hooks are whole again."""
        call_idle(trainer)
        if isinstance(exception, Exception) and trainer.world_size == 1 and between_steps(trainer):
            try:
                self.checkpoints.save_now(trainer)
            except RunError as error:
                warnings.warn(str(error), stacklevel=1)
        self._within.close()


def between_steps(trainer: Trainer) -> bool:
    """Whether the last training step is finished and the next has not begun."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    whole = batches.ready == batches.completed and batches.ready % trainer.accumulate_grad_batches == 0
    return trainer.training and whole and trainer.global_step > 0
