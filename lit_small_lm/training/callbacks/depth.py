"""Depth telemetry: what every layer does to the residual stream, measured now and then while training.

A run with it is bit for bit the run without: the figures come from a pass of their own over a few rows of the batch
(`depth_probes`), just before the step that they belong to, and from the gradients of that step. The axis is the
optimizer step, as everywhere; nothing is kept between measurements, so that a resumed run writes the same lines.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_small_lm.context import Context
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Batch, Objective, Query
from lit_small_lm.training.callbacks.depth_probes import Figures, measure
from lit_small_lm.training.callbacks.heat_map import heat_maps
from lit_small_lm.training.gradients import total_norm
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import Line, Position, RunLogger, log_everywhere

DRAWN_AT = frozenset(2**power for power in range(2, 40))
"""Numbers of measurements after which heat maps are drawn, besides the end: each time twice as many, so that their cost
and size stay small however long a run is."""


class DepthMonitor(Callback):
    """Logs what every layer does: `depth_NAME/LAYER`, layers from 0, and heat maps of it over depth and step.

    variance, angular_distance, block_influence, mixer_input, ffn_input, mixer_update, ffn_update, gradient_norm,
    attention_entropy, dead_units, load_imbalance, load_entropy, dead_experts.

    Args:
        every_n_steps: optimizer steps between two measurements, besides the first step; null: nothing is measured.
        rows: rows of a batch, on each process, that are measured; fewer cost less and scatter more.

    Raises:
        RequestError: a value out of range.
    """

    def __init__(self, every_n_steps: int | None = 100, rows: int = 4) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise RequestError(f"depth.every_n_steps: {every_n_steps}; allowed: at least 1, or null")
        if rows < 1:
            raise RequestError(f"depth.rows: {rows}; allowed: at least 1")
        self.every_n_steps, self.rows = every_n_steps, rows
        self._figures: Figures | None = None
        self._drawn_at = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModule, batch: Batch, batch_idx: int) -> None:
        if not self._due(trainer.global_step + 1) or batch_idx % trainer.accumulate_grad_batches:
            return
        part, step = first_rows(batch, self.rows), trainer.global_step
        query = pl_module.objective.query(part, (pl_module.seed, step))
        ctx = Context(query.visibility, step=torch.tensor(step))
        with trainer.precision_plugin.train_step_context():
            self._figures = measure(pl_module.net, query, ctx, groups_of(pl_module.objective, part, query))

    def _due(self, step: int) -> bool:
        return self.every_n_steps is not None and (step == 1 or step % self.every_n_steps == 0)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LanguageModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._figures is None:
            return
        scale = pl_module.sums.gradient_scale(trainer.strategy.reduce) if pl_module.sums.uneven else 1.0
        share = 1 / trainer.world_size  # every process knows the norm of all; their sum is taken
        for index, layer in enumerate(pl_module.net.layers):
            gradients = [p.grad for p in layer.parameters() if p.grad is not None]
            if gradients:
                norm = (total_norm(gradients) * scale).double()
                self._figures["gradient_norm", index] = torch.stack([norm, torch.ones_like(norm)]) * share

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LanguageModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._figures is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        figures, self._figures, step = self._figures, None, trainer.global_step
        position = Position(step, pl_module.tokens_seen, pl_module.seconds)
        log_everywhere(trainer.loggers, [Line(position, self._values(figures, trainer))])
        if step // self.every_n_steps in DRAWN_AT:
            self._draw(trainer)

    def _values(self, figures: Figures, trainer: Trainer) -> dict[str, float]:
        """What is logged, over all processes; fetched together."""
        sums = trainer.strategy.reduce(torch.stack(list(figures.values())), reduce_op="sum").tolist()
        width = len(str(trainer.lightning_module.dims.n_layers - 1))
        found = zip(figures, sums, strict=True)
        return {
            f"depth_{name}/{layer:0{width}}": float(f"{total / count:.6g}")
            for (name, layer), (total, count) in found
            if count
        }

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        if self.every_n_steps is not None and self._drawn_at < trainer.global_step:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        self._drawn_at = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger) and logger.folder is not None:
                for name, image in heat_maps(logger.folder / "metrics.jsonl").items():
                    logger.draw(name, image, trainer.global_step)


def first_rows(batch: Batch, count: int) -> Batch:
    """The first rows of a batch, with everything that is known of them."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{k: v[:count] for k, v in fields.items() if isinstance(v, Tensor)})


def groups_of(objective: Objective, batch: Batch, query: Query) -> Mapping[str, Tensor]:
    """Positions (B, T) to look at by themselves: the last of each row where text is read from left to right, else the
    masked and the unmasked ones."""
    docs = query.visibility.doc_ids
    if objective.kind == "causal":
        index = torch.arange(query.tokens.shape[1], device=query.tokens.device).expand(query.tokens.shape)
        counted = index if docs is None else torch.where(docs >= 0, index, -1)
        return {"last": index == counted.amax(1, keepdim=True)}
    if batch.specials.mask is None:
        return {}
    masked = query.tokens == batch.specials.mask
    return {"masked": masked, "unmasked": ~masked}
