"""A progress bar of steps, tokens, tokens per second and time left; plain lines where there is no terminal."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lit_small_lm.training.callbacks.step_metrics import StepMetrics

LINES = 10
"""Plain lines of progress in a run."""


class RunProgress(ProgressBar):
    """Shows step/total, tokens, tokens/s, the time left and the latest loss."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._enabled = True
        self._first = (0, 0.0)
        self._loss = "val -"

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = (trainer.global_step, pl_module.seconds)
        if self._enabled and trainer.is_global_zero and self._console.is_terminal:
            columns = (
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self._bar.start()

    def tell(self, text: str) -> None:
        """A line of its own between those of progress, from the first process alone."""
        if self._enabled and self.trainer.is_global_zero:
            self._console.print(text, highlight=False, soft_wrap=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, trainer.max_steps
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not self._enabled or not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=self._text(trainer, pl_module))
        elif step == total or step * LINES // total > (step - 1) * LINES // total:
            self._console.print(
                f"step {step}/{total}  {self._text(trainer, pl_module)}", highlight=False, soft_wrap=True
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get("val/bits_per_byte")
        self._loss = f"val {float(value):.3f} bits/byte" if value is not None else self._loss
        bound = trainer.callback_metrics.get("val/bits_per_byte_bound")
        self._loss = f"val {float(bound):.3f} bits/byte (upper bound)" if bound is not None else self._loss
        if self._enabled and trainer.is_global_zero and trainer.state.fn == "fit" and self._bar is None:
            self._console.print(f"step {trainer.global_step}/{trainer.max_steps}  {self._loss}", highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _text(self, trainer: Trainer, pl_module: LightningModule) -> str:
        steps, seconds = trainer.global_step - self._first[0], pl_module.seconds - self._first[1]
        left = seconds / max(1, steps) * (trainer.max_steps - trainer.global_step)
        metrics = next((c.latest for c in trainer.callbacks if isinstance(c, StepMetrics)), {})
        loss = f"loss {metrics['train/loss']:.3f}  " if metrics else ""
        speed = steps * pl_module.tokens_seen / max(1, trainer.global_step) / max(seconds, 1e-9)
        return f"{short(pl_module.tokens_seen)} tokens  {short(speed)} tokens/s  ETA {clock(left)}  {loss}{self._loss}"


def short(number: float) -> str:
    """`1234567` -> `1.23M`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """`3725` -> `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
