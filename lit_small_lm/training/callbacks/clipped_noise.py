"""Trains a diffusion model on the mask rates whose losses scatter least, found anew at every validation.

The interval is part of a checkpoint. Held-out figures do not depend on it: they are estimates of the bound.
"""

import dataclasses
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lit_small_lm.errors import RequestError
from lit_small_lm.keys import fold
from lit_small_lm.objectives.clipping import Interval, best, intervals, sums
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.plugin import Batch
from lit_small_lm.training.lit import LanguageModule


class ClippedNoiseSearch(Callback):
    """Replaces the objective's noise by `ClippedNoise` with the best interval (see `objectives.clipping`).

    Args:
        width: the least width of an interval.
        batches: validation batches of each process to search on.
    """

    def __init__(self, width: float = 0.5, batches: int = 8) -> None:
        if not 0 < width <= 1:
            raise RequestError(f"ClippedNoiseSearch.width: {width}; allowed: above 0, at most 1")
        if batches < 1:
            raise RequestError(f"ClippedNoiseSearch.batches: {batches}; allowed: at least 1")
        self.choices, self.batches = intervals(width), batches
        self.found = torch.zeros(len(self.choices), 3, dtype=torch.float64)
        self.chosen: Interval | None = None

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        objective = pl_module.objective
        if not isinstance(objective, Denoising):
            raise RequestError(
                f"ClippedNoiseSearch: model.objective is {type(objective).__name__}; allowed: a diffusion"
            )
        if objective.estimator == "count":
            raise RequestError('ClippedNoiseSearch: model.objective.estimator is "count", which uses no noise schedule')

    def state_dict(self) -> dict[str, Any]:
        return {} if self.chosen is None else {"low": self.chosen.low, "high": self.chosen.high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.chosen = Interval(**state) if state else None

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self._use(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self.found.zero_()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LanguageModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and batch_idx < self.batches:
            key = (fold(pl_module.seed, "clipping"), trainer.global_step)
            self.found += sums(pl_module.net, pl_module.objective, batch, key, self.choices).cpu()

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        if trainer.state.fn != "fit":
            return
        found = trainer.strategy.reduce(self.found.to(pl_module.device), reduce_op="sum")
        self.chosen = best(found.cpu(), self.choices)
        self._use(pl_module)

    def _use(self, module: LanguageModule) -> None:
        if self.chosen is not None:
            module.objective = dataclasses.replace(module.objective, noise=self.chosen.noise())
