"""The run's logger: `metrics.jsonl` and TensorBoard, on the axis of optimizer steps.

Lightning counts logged steps its own way and one behind; here every line carries the step, the tokens and the seconds
of the training it belongs to, whatever the trainer passes.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_small_lm.durable import refusal
from lit_small_lm.training.events import new_name, records
from lit_small_lm.training.run_dir import cut_events, cut_metrics


class Position(NamedTuple):
    """How far training is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Line(NamedTuple):
    """Metrics, and what step they are of."""

    position: Position
    metrics: dict[str, float]


class RunLogger(Logger):
    """Writes metrics to a run directory once `open` has named it; before that they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.position = Position()
        """Where the next metrics belong; the step metrics callback moves it."""
        self._events: Path | None = None
        """The file of events, while it can be written."""
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
        self.folder = folder
        cut_metrics(folder / "metrics.jsonl", step)
        cut_events(folder / "tensorboard", step)
        self._events = self._tried("events", lambda: new_events(folder / "tensorboard"))

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
        self.write([Line(self.position, {key: value for key, value in metrics.items() if key != "epoch"})])

    @rank_zero_only
    def write(self, lines: Sequence[Line]) -> None:
        """Lines of metrics, and for each a TensorBoard event with a scalar for every one of them."""
        lines = [line for line in lines if line.metrics]
        if self.folder is None or not lines:
            return
        texts = [_json_line(line).encode() for line in lines]
        self._tried("metrics", lambda: append_all(self.folder / "metrics.jsonl", texts))
        if self._events is not None:
            self._add([_event(_scalars(line), line.position.step) for line in lines])

    @rank_zero_only
    def draw(self, name: str, image: np.ndarray, step: int) -> None:
        """An image (height, width, 3) of bytes, for TensorBoard alone."""
        from torch.utils.tensorboard import summary

        if self._events is not None:
            self._add([_event(summary.image(name, image, dataformats="HWC"), step)])

    def _add(self, events: Sequence[Any]) -> None:
        self._tried("events", lambda: append(self._events, records(events)))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""


def new_events(folder: Path) -> Path:
    """Begin a file of events in a folder, which is made where it is not there. Raises OSError."""
    from tensorboard.compat.proto.event_pb2 import Event

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / new_name()
    append(file, records([Event(wall_time=time.time(), file_version="brain.Event:2")]))
    return file


def append(file: Path, data: bytes) -> None:
    """Add bytes to the end of a file, all or none of them. Raises OSError."""
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size, rest = os.fstat(number).st_size, data
        try:
            while rest:
                rest = rest[os.write(number, rest) :]
        except OSError:
            os.ftruncate(number, size)  # which takes no space
            raise
    finally:
        os.close(number)


def append_all(file: Path, texts: Sequence[bytes]) -> None:
    """Add texts to the end of a file together, or as many of them as there is room for. Raises OSError."""
    try:
        append(file, b"".join(texts))
    except OSError:
        for text in texts:
            append(file, text)


def log_everywhere(loggers: Sequence[Logger], lines: Sequence[Line]) -> None:
    """Metrics of steps to the run's logger, and to those that the user has asked for beside it."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.write(lines)
        else:
            for line in lines:
                logger.log_metrics(line.metrics, line.position.step)


def _json_line(line: Line) -> str:
    values = {key: value if math.isfinite(value) else str(value) for key, value in line.metrics.items()}
    step, tokens, seconds = line.position.step, line.position.tokens, round(line.position.seconds, 3)
    return json.dumps({"step": step, "tokens": tokens, "seconds": seconds, **values}) + "\n"


def _event(summary: Any, step: int) -> Any:
    """What TensorBoard is to show of a step."""
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, summary=summary)


def _scalars(line: Line) -> Any:
    """TensorBoard's summary of them all: most of what a scalar of its own would cost is the record around it."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = {"tokens": line.position.tokens, **line.metrics}
    return Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()])
