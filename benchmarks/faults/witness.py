"""The callback that both sides of a storm train with: it writes down which rows every batch held and what their loss
was, and plants the fault that it is told.

A batch is written down when it is done, under its number since the run began, so that one trained twice (before a kill
and after the resume) is two lines.
"""

import json
import os
import signal
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_small_lm.plugin import Batch

YEAR = 365 * 86_400
"""In seconds."""


class Witness(Callback):
    """Writes a line a batch, and plants a fault.

    Args:
        file: where the lines go.
        fault: none, nan (what is embedded of a batch that holds row `at`), or, in step `at`, raise, kill, stop or
            clock (set back by a year).
        at: see above.
        rank: the process in which the fault is.
    """

    def __init__(self, file: str, fault: str = "none", at: int = -1, rank: int = 0) -> None:
        self.file, self.fault, self.at, self.rank = file, fault, at, rank
        self._poisoned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.fault == "nan":
            pl_module.net.embed.register_forward_hook(lambda embed, given, x: x * self._factor())

    def _factor(self) -> float:
        return float("nan") if self._poisoned else 1.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank != self.rank:
            return
        self._poisoned = self.fault == "nan" and self.at in rows_of(batch)
        if trainer.global_step != self.at:
            return
        if self.fault == "raise":
            raise ValueError("planted fault")
        if self.fault == "clock":
            right = time.time
            time.time = lambda: right() - YEAR
        if self.fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._poisoned = False
        number = trainer.fit_loop.total_batch_idx
        line = [number, trainer.global_rank, trainer.global_step, outputs["loss"].item(), rows_of(batch)]
        line.append(os.environ.get("FAULTS_LEG", "0"))
        handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, (json.dumps(line) + "\n").encode())
        os.close(handle)


def rows_of(batch: Any) -> list[int]:
    """Which rows of the training text a batch holds."""
    return (batch.sample_ids if isinstance(batch, Batch) else batch[2]).tolist()
