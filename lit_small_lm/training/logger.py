"""The run's logger: `metrics.jsonl` and TensorBoard, on the axis of optimizer steps.

Lightning counts logged steps its own way and one behind; here every line carries the step, the tokens and the seconds
of the training it belongs to, whatever the trainer passes.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_small_lm.training.run_dir import cut_events, cut_metrics


@dataclasses.dataclass(frozen=True)
class Position:
    """How far training is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class RunLogger(Logger):
    """Writes metrics to a run directory once `open` has named it; before that they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.position = Position()
        """Where the next metrics belong; the step metrics callback moves it."""
        self._events = None

    @property
    def name(self) -> str:
        return "lit_small_lm"

    @property
    def version(self) -> str:
        return self.folder.name if self.folder else ""

    @property
    def save_dir(self) -> str | None:
        return str(self.folder) if self.folder else None

    @rank_zero_only
    def open(self, folder: Path, step: int) -> None:
        """Write to `folder` from now on, after dropping what it holds beyond `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        cut_metrics(folder / "metrics.jsonl", step)
        cut_events(folder / "tensorboard", step)
        self._events = SummaryWriter(str(folder / "tensorboard"))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.write(self.position, {key: value for key, value in metrics.items() if key != "epoch"})

    @rank_zero_only
    def write(self, position: Position, metrics: dict[str, float]) -> None:
        """One line of metrics, and one TensorBoard scalar each."""
        if self.folder is None or not metrics:
            return
        line = {**dataclasses.asdict(position), **{key: _json_number(value) for key, value in metrics.items()}}
        line["seconds"] = round(position.seconds, 3)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in {"tokens": position.tokens, **metrics}.items():
            self._events.add_scalar(key, value, position.step)

    @rank_zero_only
    def draw(self, name: str, image: np.ndarray, step: int) -> None:
        """An image (height, width, 3) of bytes, for TensorBoard alone."""
        if self._events is not None:
            self._events.add_image(name, image, step, dataformats="HWC")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        if self._events is not None:
            self._events.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._events is not None:
            self._events.close()


def log_everywhere(loggers: Sequence[Logger], position: Position, metrics: dict[str, float]) -> None:
    """Metrics of one step to the run's logger, and to those that the user has asked for beside it."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.write(position, metrics)
        else:
            logger.log_metrics(metrics, position.step)


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
