"""Gives a run its directory, once every check has passed and every process agrees which one it is."""

import os
import shutil
import stat
import warnings
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from lit_small_lm.checkpoint import checkpoints_in
from lit_small_lm.durable import refusal, replace, sweep
from lit_small_lm.errors import RequestError, shown_path
from lit_small_lm.training import run_lock
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import RunLogger
from lit_small_lm.training.run_dir import environment, fresh, write_json


class RunFiles(Callback):
    """Makes the run directory, keeps others out of it, and writes what does not change during the run.

    Args:
        config: the resolved configuration, as YAML.
        folder: the directory asked for; null: a new one below runs/.
        start_step: the step a resume or branch starts from; what the directory holds beyond it is dropped.
    """

    def __init__(self, config: str, folder: Path | None = None, start_step: int = 0) -> None:
        self.config, self.folder, self.start_step = config, folder, start_step

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        refuse_no_time(trainer)
        there = self.folder is not None and self.folder.exists()
        chosen = self.folder or (fresh() if trainer.is_global_zero else None)
        self.folder = Path(trainer.strategy.broadcast(str(chosen)))
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.run_dir = self.folder
        if trainer.is_global_zero:
            self._take(trainer, pl_module, there)
        trainer.strategy.barrier("run directory")

    def on_fit_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        run_lock.let_go()

    def _take(self, trainer: Trainer, pl_module: LanguageModule, there: bool) -> None:
        """Make the directory, unless it is `there`, and write into it; of what cannot be written nothing is left."""
        empty = not there or not any(self.folder.iterdir())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            run_lock.hold(self.folder)
            if not self.start_step and checkpoints_in(self.folder):
                raise RequestError(f"--run_dir: {shown_path(self.folder)} holds checkpoints by now, of another run")
            warn_if_open(self.folder)
            self._write(trainer, pl_module)
        except BaseException as error:
            if empty and not isinstance(error, RequestError):
                clear(self.folder)
                if not there:
                    self.folder.rmdir()
            if isinstance(error, OSError):
                raise refusal(Path(os.fsdecode(error.filename or self.folder)), error, 0) from error
            raise

    def _write(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        checkpoints = self.folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        for place in (self.folder, checkpoints, self.folder / "tensorboard"):
            sweep(place)
        first = not (self.folder / "environment.json").exists() or not self.start_step
        name = "environment.json" if first else f"environment-from-step-{self.start_step}.json"
        write_json(self.folder / name, environment())  # first: it says that the directory is a run's
        config = self.folder / "config.yaml"
        if config.is_file() and config.read_bytes() != self.config.encode():
            replace(self.folder / f"config-until-step-{self.start_step}.yaml", config.read_bytes())
        replace(config, self.config.encode())
        write_json(self.folder / "tokenizer.json", pl_module.encoder.record())
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.open(self.folder, self.start_step)


def clear(folder: Path) -> None:
    """Remove what a folder holds, as far as that goes."""
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner, ignore_errors=True)
        else:
            inner.unlink(missing_ok=True)


def warn_if_open(folder: Path) -> None:
    """Warn of a directory that every user of the machine may write to."""
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        warnings.warn(
            f"--run_dir: {shown_path(folder)} may be written to by everybody (mode {stat.S_IMODE(mode):o}): anybody "
            "can replace its checkpoints, manifests included",
            stacklevel=2,
        )


def refuse_no_time(trainer: Trainer) -> None:
    """Raise RequestError if the sessions before this one used up all of trainer.max_time."""
    for timer in trainer.callbacks:
        left = timer.time_remaining() if isinstance(timer, Timer) else None
        if left is not None and left <= 0:
            used = timer.time_elapsed()
            raise RequestError(
                f"trainer.max_time: {used + left:.0f} s in all; the run took {used:.0f} s up to step "
                f"{trainer.global_step}; allowed: more, or null"
            )
