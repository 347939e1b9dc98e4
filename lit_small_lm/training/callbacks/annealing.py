"""From an autoregressive model to masked diffusion by its attention masks (DiffuGPT and DiffuLLaMA, arXiv 2410.17891).

A network that has never seen later positions is shown a growing share of them. The trick: the share follows from the
step and is put into the objective, a frozen value; which positions are seen is drawn by the view (see `Visibility`), so
that attention and convolutions see the same ones.
"""

import dataclasses

from lightning.pytorch import Callback, Trainer

from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.plugin import Batch
from lit_small_lm.training.callbacks.wsd import in_steps
from lit_small_lm.training.diffusion import DiffusionLM


class AttentionAnnealing(Callback):
    """Raises the share of later positions that are seen from none to all of them, evenly over some steps.

    Args:
        steps: steps until all are seen; a fraction of the run if below 1 or written 1.0.

    Raises:
        RequestError: a value out of range, an objective other than masked diffusion, or a part that cannot honour it.
    """

    def __init__(self, steps: int | float = 0.2) -> None:
        if not steps > 0 or (isinstance(steps, float) and steps > 1):
            raise RequestError(f"AttentionAnnealing.steps: {steps}; allowed: whole steps, or a fraction up to 1.0")
        self.steps = steps

    def ahead(self, step: int, total: int) -> float:
        """The share of later positions seen at optimizer step `step` (from 0) of `total`."""
        return min(1.0, step / max(1, in_steps(self.steps, total)))

    def setup(self, trainer: Trainer, pl_module: DiffusionLM, stage: str) -> None:
        objective = pl_module.objective
        if not isinstance(objective, MaskedDiffusion):
            name = type(objective).__name__
            raise RequestError(f"AttentionAnnealing: model.objective is {name}; allowed: MaskedDiffusion")
        pl_module.backbone.refuse_kind("annealed")

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionLM, batch: Batch, batch_idx: int) -> None:
        share = self.ahead(trainer.global_step, trainer.max_steps)
        pl_module.objective = dataclasses.replace(pl_module.objective, ahead=share)
        pl_module.noted["ahead"] = share
