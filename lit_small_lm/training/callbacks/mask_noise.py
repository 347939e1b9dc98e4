"""Noise on what a network reads for the mask, while it learns what the mask is (LLaDA 2, arXiv 2512.15745).

An autoregressive model has never read the mask: its embedding lies near zero, all masked positions look alike, and many
of them upset the first steps. The trick: the weights stay as they are; normal noise is added to the embedding's output
at masked positions, each its own, drawn from seed, step, slot of the row, position and channel.
"""

import math

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_small_lm.errors import RequestError
from lit_small_lm.keys import fold, uniform
from lit_small_lm.plugin import Batch
from lit_small_lm.training.callbacks.wsd import in_steps
from lit_small_lm.training.diffusion import DiffusionLM


class MaskNoise(Callback):
    """Adds normal noise to the embeddings of masked positions in the first steps, less in each.

    Args:
        std: standard deviation at the first step; the embeddings' own is a good measure.
        steps: steps until there is none, to which it falls evenly; a fraction of the run if below 1 or written 1.0.

    Raises:
        RequestError: a value out of range, or a model without masks.
    """

    def __init__(self, std: float = 0.02, steps: int | float = 0.05) -> None:
        if not (math.isfinite(std) and std > 0):
            raise RequestError(f"MaskNoise.std: {std}; allowed: above 0")
        if not steps > 0 or (isinstance(steps, float) and steps > 1):
            raise RequestError(f"MaskNoise.steps: {steps}; allowed: whole steps, or a fraction up to 1.0")
        self.std, self.steps = std, steps
        self._hook: RemovableHandle | None = None
        self._now: tuple[Batch, int, float] | None = None

    def deviation(self, step: int, total: int) -> float:
        """The standard deviation at optimizer step `step` (from 0) of `total`."""
        return self.std * max(0.0, 1 - step / max(1, in_steps(self.steps, total)))

    def setup(self, trainer: Trainer, pl_module: DiffusionLM, stage: str) -> None:
        if not isinstance(pl_module, DiffusionLM):
            raise RequestError(f"MaskNoise: model is {type(pl_module).__name__}; allowed: DiffusionLM")

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionLM) -> None:
        self._hook = pl_module.net.embed.register_forward_hook(self._added)

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionLM, batch: Batch, batch_idx: int) -> None:
        deviation = self.deviation(trainer.global_step, trainer.max_steps)
        key = fold("mask noise", pl_module.seed, trainer.global_step)
        self._now = (batch, key, deviation) if deviation else None
        pl_module.noted["mask_noise"] = deviation

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionLM) -> None:
        self._hook.remove()

    @torch.compiler.disable
    def _added(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """The embeddings (B, T, D) of the tokens in `args`; noise is added while training, as dropout is."""
        if self._now is None or not module.training:
            return output
        batch, key, deviation = self._now
        return with_noise(output, args[0], batch, key, deviation)


def with_noise(x: Tensor, tokens: Tensor, batch: Batch, key: int, deviation: float) -> Tensor:
    """x (B views, T, D) with noise where `tokens` (B views, T) are the mask; rows of a batch of B stand there once for
    each view."""
    views = len(tokens) // len(batch.slots)
    row, column = (tokens == batch.specials.mask).nonzero(as_tuple=True)  # (M,) each
    slot, view = batch.slots[row // views], row % views
    channel = torch.arange(x.shape[-1], device=x.device)
    noise = normal(key, slot.unsqueeze(1), view.unsqueeze(1), column.unsqueeze(1), channel)  # (M, D)
    return x.index_put((row, column), deviation * noise.to(x.dtype), accumulate=True)


def normal(key: int, *counters: Tensor) -> Tensor:
    """Standard normal draws in float64, each a function of `key` and its counters (Box and Muller, 1958)."""
    first, second = (uniform(fold(name, key), *counters) for name in ("radius", "angle"))
    return (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)
