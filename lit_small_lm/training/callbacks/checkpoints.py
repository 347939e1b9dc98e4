"""Checkpoints every n steps, after validation where both fall on one step, so that a resume repeats neither."""

import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_small_lm.checkpoint import checkpoint_name, checkpoints_in, step_of
from lit_small_lm.durable import manifest_of
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.training.callbacks.wsd import WSDSchedule
from lit_small_lm.training.saving import AtomicCheckpointIO, Saving


class Checkpoints(Callback):
    """Writes a checkpoint every n steps, at the end of training, and when `save_now` is called.

    Kept are the newest ones and the last one before the learning rate decays, from which other decays can branch.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest are kept, at least 2; 0 keeps all.
        saving: background: training goes on while a copy of its state is written; blocking: it waits, and takes no
            memory for a copy.

    Raises:
        RequestError: a value out of range.
    """

    def __init__(self, every_n_steps: int = 200, keep: int = 3, saving: Saving = "background") -> None:
        if every_n_steps < 1:
            raise RequestError(f"checkpoints.every_n_steps: {every_n_steps}; allowed: at least 1")
        if keep < 0 or keep == 1:
            raise RequestError(f"checkpoints.keep: {keep}; allowed: 0 (all) or at least 2")
        self.every_n_steps, self.keep, self.saving = every_n_steps, keep, saving
        self.run_dir: Path | None = None
        """Set by the run directory callback; nothing is written before."""
        self._io: AtomicCheckpointIO | None = None
        self._saved_at = self._pruned_at = -1
        self._doubtful: set[Path] = set()
        """Checkpoints of later steps than that which training goes on from: it could not be read from them."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        io = trainer.strategy.checkpoint_io
        if type(io) is TorchCheckpointIO:  # Lightning's, where nobody chose another
            io = trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and isinstance(io, AtomicCheckpointIO):
            self._io, io.saving = io, self.saving

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = self._pruned_at = trainer.global_step
        files = checkpoints_in(self.run_dir) if self.run_dir else []
        self._doubtful = {file for file in files if step_of(file) > trainer.global_step}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more and ends
        self._look(trainer)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not validation_due(trainer):
            self._save(trainer)

    def save_now(self, trainer: Trainer, again_after_validation: bool = False) -> None:
        """Write a checkpoint of the last finished step, unless there is one."""
        self._save(trainer, now=True)
        if again_after_validation:  # which a run that goes on from the first one would miss
            self._saved_at = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer, now=trainer.should_stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, now=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What is being written is finished; where that fails too, it is said beside the exception."""
        try:
            self._finish(trainer)
        except RunError as error:
            warnings.warn(str(error), stacklevel=2)

    def _save(self, trainer: Trainer, now: bool = False) -> None:
        step = trainer.global_step
        due = now or step % self.every_n_steps == 0
        if self.run_dir is not None and due and step != self._saved_at:
            self._finish(trainer)
            if self._io is not None:  # a copy would be of no use where the file is waited for
                self._io.saving = "blocking" if now or trainer.should_stop else self.saving
            path, self._saved_at = self.run_dir / "checkpoints" / checkpoint_name(step), step
            trainer.save_checkpoint(path)
            self._doubtful.discard(path)
        if now:
            self._finish(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Raise RunError if the last checkpoint could not be written; if it is there, remove what it replaces."""
        if self._io is None or not self._io.busy():
            self._prune(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """The same, once it has been written."""
        if self._io is not None:
            self._io.wait()
        self._prune(trainer)

    def _prune(self, trainer: Trainer) -> None:
        """Remove what is older than the newest `keep` checkpoints; those in doubt are not counted among them."""
        if self.run_dir is None or not trainer.is_global_zero or not self.keep or self._pruned_at == self._saved_at:
            return
        self._pruned_at = self._saved_at
        files = checkpoints_in(self.run_dir)
        sound = [file for file in files if file not in self._doubtful]
        if len(sound) <= self.keep:
            return
        decays = [c.decay_start(trainer.max_steps) for c in trainer.callbacks if isinstance(c, WSDSchedule)]
        stable = next((file for file in sound if decays and step_of(file) <= min(decays)), None)
        for file in files[files.index(sound[self.keep - 1]) + 1 :]:
            if file != stable and not file.is_dir():
                file.unlink(missing_ok=True)
                manifest_of(file).unlink(missing_ok=True)  # after the file: one without it would be in doubt


def last_stable(run_dir: Path, decay_start: int) -> Path | None:
    """The newest checkpoint of a run from before the learning rate decays, if there is one."""
    return next((file for file in checkpoints_in(run_dir) if step_of(file) <= decay_start), None)


def validation_due(trainer: Trainer) -> bool:
    """Whether Lightning validates after the training batch that just ended; by the clock that is not known before."""
    if trainer.val_check_batch is None:
        return False
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return (trainer.should_stop or batches % trainer.val_check_batch == 0) and trainer.enable_validation
