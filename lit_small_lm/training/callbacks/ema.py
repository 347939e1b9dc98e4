"""A moving average of the weights, by Lightning's WeightAveraging: evaluated, saved and loaded in their place.

Training goes on with the weights themselves, which a checkpoint keeps beside the averaged ones. The decay warms up
(the average reaches back a ninth of the updates so far at most), so that it forgets the initial weights in short runs.
"""

import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from lit_small_lm.errors import RequestError
from lit_small_lm.training.judge import TAKEN, Judge
from lit_small_lm.training.lit import LanguageModule


class EMA(WeightAveraging):
    """Averages the weights after every optimizer step: a share `decay` of the average stays, at most.

    Args:
        decay: share of the average that stays at each step, above 0 and below 1.

    Raises:
        RequestError: `decay` out of range, or (when training starts) a strategy that shards weights.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise RequestError(f"ema_decay: {decay}; allowed: above 0, below 1")
        super().__init__(use_buffers=False, multi_avg_fn=self._mix)
        self.decay = decay
        self._judge: Judge | None = None

    def _mix(self, averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        updates = int(self._average_model.n_averaged)
        kept = min(self.decay, (1 + updates) / (10 + updates))
        share: float | list[Tensor] = 1 - kept
        if self._judge is not None:  # the average stays where the step was left out
            share = [(self._judge.verdict == TAKEN).to(averages[0].dtype) * share] * len(averages)
        torch._foreach_lerp_(averages, weights, share)

    def refuse_sharded(self, strategy: Strategy) -> None:
        """Raise RequestError if a process does not hold all weights."""
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            name = type(strategy).__name__
            raise RequestError(f"ema_decay: {self.decay} with trainer.strategy {name}; allowed: one device, or ddp")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.refuse_sharded(trainer.strategy)
        self._device = trainer.strategy.root_device  # where the weights will be
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides")
            super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()  # read at every step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        """Take both sets of weights; a checkpoint without an average starts one."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The checkpoint was not created with WeightAveraging")
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self._judge = pl_module.judge
        self._latest_update_step = trainer.global_step  # the next update follows the next optimizer step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet: the last checkpoint, with both sets of weights, is still to be written."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averaged weights in the network."""
        self._copy_average_to_current(pl_module)
