"""The callback through which a `fit` from the command line takes its steps in turn with its peers."""

import zlib
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from measuring.turns import Turns


class TurnClock(Callback):
    """Says what is trained when the first batch is there, and counts steps."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            optimizer, clip = trainer.optimizers[0], trainer.gradient_clip_val
            settings = stated(optimizer, trainer.precision, clip, batch.tokens.numpy().tobytes())
            self._turns = Turns()
            self._turns.ready(parameters=sum(p.numel() for p in pl_module.net.parameters()), **settings)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *others: Any) -> None:
        self._turns.step()


def stated(optimizer: Any, precision: str, clip: float | None, first_batch: bytes) -> dict[str, object]:
    """What peers have to agree on."""
    groups = optimizer.param_groups
    return {
        "optimizer": type(optimizer).__name__,
        "fused": all(group["fused"] for group in groups),
        "betas": list(groups[0]["betas"]),
        "weight_decay": max(group["weight_decay"] for group in groups),
        "precision": precision,
        "clip": clip,
        "first_batch": zlib.crc32(first_batch),
    }
