"""What is said of a run that makes a diffusion model of an autoregressive one: how near it is to it at the start."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lit_small_lm.checkpoint import load
from lit_small_lm.cli.report import say
from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.likelihood import StepZero, step_zero
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Batch, Objective, Specials
from lit_small_lm.sharding import is_sharded
from lit_small_lm.training.callbacks.depth import first_rows
from lit_small_lm.training.diffusion import DiffusionLM
from lit_small_lm.training.lit import LanguageModule

ROWS = 4
"""Held-out rows that both networks are asked about."""


def begun(model: LanguageModule, path: Path | None, record: Mapping[str, Any] | None) -> Iterator["Equivalence"]:
    """A callback for a run that starts from the weights of an autoregressive model; none for others."""
    if path is None or not isinstance(model, DiffusionLM):
        return
    if isinstance(Objective.from_dict(record["objective"]), NextToken):
        yield Equivalence(path, Specials(**record["specials"]))


class Equivalence(Callback):
    """Says, before the first step, by how much the converted model's likelihood differs from the autoregressive one's.

    Args:
        path: the checkpoint or run of the autoregressive model.
        before: the special ids of its tokenizer.
    """

    def __init__(self, path: Path, before: Specials) -> None:
        self.path, self.before = path, before

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionLM) -> None:
        if not trainer.is_global_zero:
            return
        mask = pl_module.encoder.specials.mask
        if self.before.mask is None:
            say(f"conversion: the tokenizer has a mask now, id {mask}; its row is the mean of the others")
        try:
            found = self._measured(trainer, pl_module)
        except RequestError as error:
            say(f"conversion: step 0 is not compared: {error}")
            return
        for line in lines(found, pl_module.held_out.logits_at):
            say(line)

    def _measured(self, trainer: Trainer, module: DiffusionLM) -> StepZero:
        """Both networks, without autocast, on the first rows held out."""
        if is_sharded(module.net.embed.weight):
            raise RequestError("the weights are sharded")
        module.backbone.refuse_kind("doubled")
        batch: Batch = first_rows(next(iter(trainer.datamodule.val_dataloader())), ROWS).to(module.device)
        weight, training = module.net.embed.weight, module.net.training
        before = load(self.path, device=str(module.device)).net.to(weight.dtype)
        rows = len(before.embed.weight)
        module.net.eval()
        with torch.compiler.set_stance("force_eager"):
            found = step_zero(module.net, before, rows, batch, module.held_out.logits_at)
        module.net.train(training)
        return found


def lines(found: StepZero, logits_at: str) -> Iterator[str]:
    """What was measured, in words."""
    difference = found.converted - found.autoregressive
    yield (
        f"conversion: step 0, {found.tokens} held-out tokens: blocks of 1 {found.converted:.6f} nats per token, "
        f"autoregressive {found.autoregressive:.6f}, difference {difference:.2g}"
    )
    if found.with_mask is not None:
        yield f"conversion: the mask is left out of both softmaxes; autoregressive with it {found.with_mask:.6f}"
    if logits_at == "own":
        yield "conversion: they differ with model.objective.logits_at own; with before they would not"
