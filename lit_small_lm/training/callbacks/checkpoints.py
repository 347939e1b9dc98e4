"""Checkpoints every n steps, after validation where both fall on one step, so that a resume repeats neither."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_small_lm.checkpoint import checkpoint_name, checkpoints_in, step_of
from lit_small_lm.errors import RequestError
from lit_small_lm.training.callbacks.wsd import WSDSchedule


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP stopped the run, after a checkpoint of the last finished step was written."""

    def __init__(self, number: int, step: int, run_dir: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.step, self.run_dir = number, step, run_dir


class Checkpoints(Callback):
    """Writes a checkpoint every n steps, at the end of training, and when a signal asks to stop.

    Kept are the newest ones and the last one before the learning rate decays, from which other decays can branch.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest are kept, at least 2; 0 keeps all.

    Raises:
        RequestError: a value out of range.
    """

    def __init__(self, every_n_steps: int = 200, keep: int = 3) -> None:
        if every_n_steps < 1:
            raise RequestError(f"checkpoints.every_n_steps: {every_n_steps}; allowed: at least 1")
        if keep < 0 or keep == 1:
            raise RequestError(f"checkpoints.keep: {keep}; allowed: 0 (all) or at least 2")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.run_dir: Path | None = None
        """Set by the run directory callback; nothing is written before."""
        self._saved_at = -1
        self._signal = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._signal = trainer.global_step, 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more and ends
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        asked = self._signal if trainer.world_size == 1 else self._signal_anywhere(trainer)
        if asked or not validation_due(trainer):
            self._save(trainer, now=bool(asked))
        if asked:
            raise Interrupted(asked, trainer.global_step, self.run_dir)

    def _signal_anywhere(self, trainer: Trainer) -> int:
        mine = torch.tensor(float(self._signal), device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer, now=trainer.should_stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, now=True)

    def _save(self, trainer: Trainer, now: bool = False) -> None:
        step = trainer.global_step
        due = now or step % self.every_n_steps == 0
        if self.run_dir is None or not due or step == self._saved_at:
            return
        self._saved_at = step
        trainer.save_checkpoint(self.run_dir / "checkpoints" / checkpoint_name(step))
        if trainer.is_global_zero:
            self._prune(trainer)

    def _prune(self, trainer: Trainer) -> None:
        files = checkpoints_in(self.run_dir)
        decays = [c.decay_start(trainer.max_steps) for c in trainer.callbacks if isinstance(c, WSDSchedule)]
        stable = last_stable(self.run_dir, min(decays)) if decays else None
        for file in files[self.keep or len(files) :]:
            if file != stable:
                file.unlink()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: a checkpoint is either whole or not there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        try:
            with open(new, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


def last_stable(run_dir: Path, decay_start: int) -> Path | None:
    """The newest checkpoint of a run from before the learning rate decays, if there is one."""
    return next((file for file in checkpoints_in(run_dir) if step_of(file) <= decay_start), None)


def validation_due(trainer: Trainer) -> bool:
    """Whether Lightning validates after the training batch that just ended."""
    if not trainer.enable_validation:
        return False
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return trainer.should_stop or batches % trainer.val_check_batch == 0
