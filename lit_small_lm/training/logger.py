"""The run's logger: `metrics.jsonl` and TensorBoard, on the axis of optimizer steps.

Lightning counts logged steps its own way and one behind; here every line carries the step, the tokens and the seconds
of the training it belongs to, whatever the trainer passes.
"""

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_small_lm.durable import refusal
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
        self._failed: set[str] = set()
        """What could not be written."""

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
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = folder
        cut_metrics(folder / "metrics.jsonl", step)
        cut_events(folder / "tensorboard", step)
        self._events = self._tried("events", lambda: EventFileWriter(str(folder / "tensorboard")))

    def _tried(self, what: Literal["metrics", "events"], act: Callable[[], Any]) -> Any:
        """Training goes on where a log cannot be written; that is said once, and events end there."""
        try:
            return act()
        except OSError as error:
            place = self.folder / ("metrics.jsonl" if what == "metrics" else "tensorboard")
            if what not in self._failed:
                warnings.warn(f"{refusal(place, error, 0)}; training goes on, lines are missing", stacklevel=2)
            self._failed.add(what)
            self._events = None if what == "events" else self._events
            return None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.write(self.position, {key: value for key, value in metrics.items() if key != "epoch"})

    @rank_zero_only
    def write(self, position: Position, metrics: dict[str, float]) -> None:
        """One line of metrics, and one TensorBoard event with a scalar for each."""
        if self.folder is None or not metrics:
            return
        line = {**vars(position), **{key: _json_number(value) for key, value in metrics.items()}}
        line["seconds"] = round(position.seconds, 3)
        self._tried("metrics", lambda: append(self.folder / "metrics.jsonl", f"{json.dumps(line)}\n".encode()))
        self._add(lambda: _scalars({"tokens": position.tokens, **metrics}), position.step)

    @rank_zero_only
    def draw(self, name: str, image: np.ndarray, step: int) -> None:
        """An image (height, width, 3) of bytes, for TensorBoard alone."""
        from torch.utils.tensorboard import summary

        self._add(lambda: summary.image(name, image, dataformats="HWC"), step)

    def _add(self, summary: Callable[[], Any], step: int) -> None:
        """What TensorBoard is to show of a step."""
        from tensorboard.compat.proto.event_pb2 import Event

        if self._events is not None:
            event = Event(wall_time=time.time(), step=step, summary=summary())
            self._tried("events", lambda: self._events.add_event(event))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        if self._events is not None:
            self._tried("events", self._events.flush)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._events is not None:
            self._tried("events", self._events.close)


def append(file: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all. Raises OSError."""
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size, rest = os.fstat(number).st_size, line
        try:
            while rest:
                rest = rest[os.write(number, rest) :]
        except OSError:
            os.ftruncate(number, size)  # which takes no space
            raise
    finally:
        os.close(number)


def log_everywhere(loggers: Sequence[Logger], position: Position, metrics: dict[str, float]) -> None:
    """Metrics of one step to the run's logger, and to those that the user has asked for beside it."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.write(position, metrics)
        else:
            logger.log_metrics(metrics, position.step)


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _scalars(metrics: dict[str, float]) -> Any:
    """TensorBoard's summary of them all: most of what a scalar of its own would cost is the record around it."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()])
