"""Gives a run its directory, once every check has passed and every process agrees which one it is."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from lit_small_lm.errors import RequestError
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import RunLogger
from lit_small_lm.training.run_dir import environment, fresh, write_json


class RunFiles(Callback):
    """Makes the run directory and writes what does not change during the run.

    Args:
        config: the resolved configuration, as YAML.
        folder: the directory asked for; null: a new one below runs/.
        start_step: the step a resume or branch starts from; what the directory holds beyond it is dropped.
    """

    def __init__(self, config: str, folder: Path | None = None, start_step: int = 0) -> None:
        self.config, self.folder, self.start_step = config, folder, start_step

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        refuse_no_time(trainer)
        chosen = self.folder or (fresh() if trainer.is_global_zero else None)
        self.folder = Path(trainer.strategy.broadcast(str(chosen)))
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.run_dir = self.folder
        if trainer.is_global_zero:
            self._write(trainer, pl_module)
        trainer.strategy.barrier("run directory")

    def _write(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.yaml"
        if config.exists() and config.read_text() != self.config:
            config.rename(self.folder / f"config-until-step-{self.start_step}.yaml")
        config.write_text(self.config)
        first = not (self.folder / "environment.json").exists() or not self.start_step
        name = "environment.json" if first else f"environment-from-step-{self.start_step}.json"
        write_json(self.folder / name, environment())
        write_json(self.folder / "tokenizer.json", pl_module.encoder.record())
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.open(self.folder, self.start_step)


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
