"""Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): operations that training needs over the devices' peak.

Tokens per second times operations per token, over the dense peak: MFU = R * F / (n * P). The trick: F comes from the
network itself, counted once without storage (`planning.flops`), so that it holds for any family and objective; P from
the table of makers' figures (`planning.devices`), and where it has none nothing is said.
"""

from typing import NamedTuple

import torch
from lightning.pytorch import Trainer

from lit_small_lm.errors import RequestError
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.devices import ARITHMETIC_OF, detected
from lit_small_lm.planning.flops import flops
from lit_small_lm.planning.outline import Outline
from lit_small_lm.training.lit import LanguageModule


class Work(NamedTuple):
    """What a token costs, and what the devices could do."""

    flops_per_token: float | None
    """Of forward and backward pass, recomputation not credited; None for a network that cannot be counted."""
    peak: float | None
    """Dense FLOPs per second of all processes' devices together; None where it is not known."""

    def figures(self, tokens_per_second: float) -> dict[str, float]:
        """train/model_flops_per_second and, of a known peak, train/model_flops_utilisation as a share of 1."""
        if self.flops_per_token is None:
            return {}
        rate = tokens_per_second * self.flops_per_token
        share = {} if self.peak is None else {"train/model_flops_utilisation": rate / self.peak}
        return {"train/model_flops_per_second": rate, **share}


def work_of(trainer: Trainer, module: LanguageModule) -> Work:
    """What the tokens of this training cost on these devices; counted once, without data."""
    data = trainer.datamodule
    try:
        outline = Outline(module.backbone, module.dims, data.encoder.specials.vocab_size)
        counted = flops(outline, parameters(outline), data.seq_len, module.objective).training_per_token
    except (RuntimeError, RequestError):  # a part from outside that does not run without storage trains all the same
        return Work(None, None)
    peak = peak_of(trainer.strategy.root_device, str(trainer.precision))
    return Work(counted, None if peak is None else peak * trainer.world_size)


def peak_of(device: torch.device, precision: str) -> float | None:
    """Dense FLOPs per second of one device in a run's precision; None for a CPU and for what is not in the table."""
    if device.type != "cuda":
        return None
    known = detected(torch.cuda.get_device_name(device))
    arithmetic = ARITHMETIC_OF.get(precision)
    if arithmetic == "fp32" and torch.get_float32_matmul_precision() != "highest":
        arithmetic = "tf32"
    return None if known is None else known.peaks.get(arithmetic)
