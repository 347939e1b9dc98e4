"""Loss, learning rate, gradient norm and throughput of every optimizer step.

Values stay on the device and are fetched together, once every `log_every_n_steps` steps, at the first step, and before
a checkpoint is written: a line for every step, without a synchronisation for every step.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_small_lm.ranks import data_rank
from lit_small_lm.training.callbacks.guard import Guard, Seen
from lit_small_lm.training.callbacks.utilisation import Work, work_of
from lit_small_lm.training.judge import TAKEN
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.logger import Line, Position, RunLogger, log_everywhere


class _Step(NamedTuple):
    position: Position
    lr: float
    tokens_per_second: float
    values: tuple[Tensor, Tensor, Tensor, Tensor]
    """Nats and token count of this process, gradient norm, what the judge said of the step; written to no more."""
    terms: dict[str, Tensor]
    """Other loss terms of this process, summed."""
    scalars: dict[str, Tensor]
    """What the network recorded in this process, averaged over its batches."""
    noted: dict[str, float]
    """What callbacks said of the step, the same in every process."""


_Others = tuple[dict[str, float], dict[str, float]]
"""Terms and scalars of a step, summed over processes."""


class StepMetrics(Callback):
    """Logs train/loss (nats per token), train/lr, train/grad_norm and train/tokens_per_second for every step.

    Beside them train/model_flops_per_second and, on devices whose peak is known, train/model_flops_utilisation (see
    `utilisation`), and train/NAME of every other loss term (per token), of every scalar the network recorded, and of
    what callbacks note.
    """

    def __init__(self) -> None:
        self._waiting: list[_Step] = []
        self._clock = 0.0
        self._work = Work(None, None)
        self._shares = 1
        """Shares of the data that are worked on at once."""
        self.latest: dict[str, float] = {}
        """The metrics of the last step that was fetched."""

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self._work, self._shares = work_of(trainer, pl_module), data_rank(trainer).size
        self._waiting, self._clock = [], time.perf_counter()
        self._move(trainer, Position(trainer.global_step, pl_module.tokens_seen, pl_module.seconds))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LanguageModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        nats, count = pl_module.sums.nats, pl_module.sums.count
        tokens = pl_module.sums.tokens * self._shares
        pl_module.tokens_seen += tokens
        pl_module.seconds += elapsed
        norm = nats.new_tensor(math.nan) if pl_module.grad_norm is None else pl_module.grad_norm
        step = trainer.global_step
        position = Position(step, pl_module.tokens_seen, pl_module.seconds)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        verdict = nats.new_tensor(TAKEN) if pl_module.judge is None else pl_module.judge.verdict
        values, sums, noted = (nats, count, norm, verdict), pl_module.sums, pl_module.noted
        scalars = {name: total / sums.batches for name, total in sums.scalars.items()}
        self._waiting.append(_Step(position, lr, tokens / elapsed, values, dict(sums.terms), scalars, dict(noted)))
        self._move(trainer, position)
        if step % trainer.log_every_n_steps == 0 or step == 1 or step >= trainer.max_steps:
            self.flush(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self.flush(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self._clock = time.perf_counter()  # validation is not training time

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LanguageModule, checkpoint: dict[str, Any]) -> None:
        self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Fetch and write the steps that wait."""
        if not self._waiting:
            return
        steps, self._waiting = self._waiting, []
        columns = zip(*(step.values for step in steps), strict=True)
        values = torch.stack([torch.stack(column).double() for column in columns], dim=1)  # (steps, 4)
        sums = trainer.strategy.reduce(values[:, :2].clone(), reduce_op="sum").tolist()
        rest = values[:, 2:].tolist()
        guards = [callback for callback in trainer.callbacks if isinstance(callback, Guard)]
        lines: list[Line] = []
        try:
            for step, own, (norm, verdict), other in zip(steps, sums, rest, others_of(steps, trainer), strict=True):
                self.latest = self._metrics(step, own, other, norm, trainer.world_size)
                seen = Seen(step.position.step, self.latest["train/loss"], norm, int(verdict))
                for guard in guards:
                    self.latest |= guard.note(seen)
                lines.append(Line(step.position, self.latest))
                for guard in guards:
                    guard.act(trainer, seen)
        finally:
            log_everywhere(trainer.loggers, lines)  # together, up to a step that ends the run

    def _metrics(
        self, step: _Step, own: Sequence[float], other: _Others, norm: float, processes: int
    ) -> dict[str, float]:
        """What is logged of a step, of sums over `processes` processes: `own` nats and token count."""
        (nats, count), (terms, scalars) = own, other
        return {
            **{f"train/{name}": value / count for name, value in terms.items()},
            **{f"train/{name}": value / processes for name, value in scalars.items()},
            **{f"train/{name}": value for name, value in step.noted.items()},
            "train/loss": nats / count,
            "train/lr": step.lr,
            "train/grad_norm": norm,
            "train/tokens_per_second": round(step.tokens_per_second, 1),
            **self._work.figures(step.tokens_per_second),
        }

    def _move(self, trainer: Trainer, position: Position) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.position = position


def others_of(steps: Sequence[_Step], trainer: Trainer) -> list[_Others]:
    """The other terms and scalars of each step, summed over processes; fetched together."""
    waiting = [value for step in steps for value in (*step.terms.values(), *step.scalars.values())]
    if not waiting:
        return [({}, {})] * len(steps)
    found = iter(trainer.strategy.reduce(torch.stack(waiting), reduce_op="sum").tolist())
    return [
        ({name: next(found) for name in step.terms}, {name: next(found) for name in step.scalars}) for step in steps
    ]
