"""Lightning's own classes as a configuration names them, and what it says of them when they are wrong."""

import contextlib
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_small_lm.errors import LIBRARIES, RequestError, RunError, nearest, place_of, shown
from lit_small_lm.training.callbacks.annealing import AttentionAnnealing
from lit_small_lm.training.callbacks.clipped_noise import ClippedNoiseSearch
from lit_small_lm.training.callbacks.conversion import WSDConversion
from lit_small_lm.training.callbacks.mask_noise import MaskNoise

ONCE = (AttentionAnnealing, ClippedNoiseSearch, MaskNoise, WSDConversion)
"""Callbacks that say what a step trains on: of two of a kind one would undo the other, or add to it unseen."""
STRATEGIES = [name for name in StrategyRegistry.available_strategies() if not re.search("spawn|fork|notebook", name)]
"""Those of Lightning that start this program anew; processes of another kind leave nothing to report."""
PROCESSES_A_CORE = 4
IMPORTS = (
    *(f"lightning.pytorch.{room}" for room in ("callbacks", "loggers", "profilers", "strategies", "plugins")),
    "lightning.fabric.plugins",
    *(f"torch.distributed.fsdp.{name}" for name in ("MixedPrecision", "CPUOffload", "MixedPrecisionPolicy")),
    "torch.distributed.fsdp.CPUOffloadPolicy",
)
"""What a configuration may name beside our own classes, and those of plug-ins: nothing else is imported for it."""
UNFIT = {
    BatchSizeFinder: "rows are shared out by data.batch_size; see lit-small-lm plan",
    LearningRateFinder: "the rate is optim.lr under schedule, and belongs to no attribute of the model",
}
"""Callbacks of Lightning that change what is decided elsewhere, and where."""
OPTIONS: dict[str, dict[str, Any]] = {
    "callbacks": {"kind": Callback},
    "logger": {"kind": Logger, "words": (True, False)},
    "strategy": {"kind": Strategy, "words": ("auto", *STRATEGIES)},
    "profiler": {"kind": Profiler, "words": ("simple", "advanced", "pytorch", "xla")},
    "accelerator": {"choices": ("auto", "cpu", "gpu", "cuda")},
    "max_steps": {"low": -1, "high": 2**53},
    "max_epochs": {"low": -1, "high": 2**53},
    "min_steps": {"low": 0, "high": 2**53},
    "min_epochs": {"low": 0, "high": 2**53},
    "max_time": {"like": "DD:HH:MM:SS"},
    "val_check_interval": {"above": 0, "like": "DD:HH:MM:SS"},
    "check_val_every_n_epoch": {"low": 1},
    "accumulate_grad_batches": {"low": 1, "high": 2**31},
    "gradient_clip_val": {"low": 0},
    "gradient_clip_algorithm": {"choices": ("norm", "value")},
    "log_every_n_steps": {"low": 1},
    "num_nodes": {"low": 1, "high": 2**20},
    "num_sanity_val_steps": {"low": -1},
    "reload_dataloaders_every_n_epochs": {"low": 0},
    **{name: {"low": 0} for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches")},
    **{name: {"low": 0} for name in ("limit_predict_batches", "overfit_batches", "fast_dev_run")},
}
"""Arguments of the Trainer that hold classes, and ranges of others, as `schema.group` takes them."""


def refuse_twice(callbacks: Iterable[Callback]) -> None:
    """Raise RequestError for a second callback of a kind of which there can be one, or one that does not work here."""
    kinds = [type(callback) for callback in callbacks]
    for kind, why in UNFIT.items():
        if kind in kinds:
            raise RequestError(f"trainer.callbacks: {kind.__name__} does not go with this trainer: {why}")
    for kind in ONCE:
        if kinds.count(kind) > 1:
            raise RequestError(f"trainer.callbacks: {kind.__name__} {kinds.count(kind)} times; allowed: once")


def refuse_unlogged(callbacks: Iterable[Callback], metrics: Iterable[str]) -> None:
    """Raise RequestError for a callback that watches a metric which is never logged."""
    for callback in callbacks:
        monitor = vars(callback).get("monitor")
        if monitor is not None and monitor not in metrics:
            raise RequestError(
                f"trainer.callbacks: {type(callback).__name__} has monitor {shown(monitor)!r}, which is never logged; "
                f"known: {', '.join(metrics)}{nearest(monitor, metrics)}"
            )


def refuse_contradiction(trainer: Mapping[str, Any]) -> None:
    """Raise RequestError for a run that would have to be longer than it may be, or of more processes than fit."""
    devices, most = str(trainer["devices"]), PROCESSES_A_CORE * (os.cpu_count() or 1)
    if trainer["accelerator"] == "cpu" and devices.isdecimal() and int(devices) > most:
        asked = f"{shown(devices)} processes on {os.cpu_count()} CPU cores"
        raise RequestError(f"trainer.devices: {asked}; allowed: at most {most}")
    for what in ("steps", "epochs"):
        least, most = trainer[f"min_{what}"], trainer[f"max_{what}"]
        if least is not None and most not in (None, -1) and least > most:
            raise RequestError(f"trainer.min_{what}: {least}, but trainer.max_{what} is {most}; allowed: at most that")


def refusal(error: BaseException) -> RequestError | RunError:
    """What a constructor said, without the words that jsonargparse wraps around it."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for link in chain:
        if isinstance(link, (RequestError, RunError)):
            return link
    first = chain[-1]
    text = " ".join(str(first).split())
    place = place_of(first)
    where = "" if place.startswith(LIBRARIES) else f" in {place}"
    return RequestError(f"{_builder(first)}: {shown(text)} ({type(first).__name__}{where})")


def _builder(error: BaseException) -> str:
    """The class whose constructor raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "__init__"]
    return type(frames[-1].f_locals.get("self")).__name__ if frames else "the request"


class Unprofiled(PassThroughProfiler):
    """Notes nothing, as Lightning's own that is used where none is asked for, and makes nothing for each of the ninety
    parts of a step."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:
        return self.nothing


def make_trainer(config: dict[str, Any]) -> Trainer:
    """Lightning's Trainer; what it refuses (a device that is not there, a strategy it does not know) in one line."""
    try:
        trainer = Trainer(**{**config, "profiler": config["profiler"] or Unprofiled()})
        trainer._signal_connector.register_signal_handlers = lambda: None  # signals are ours, see `signals`
        return trainer
    except RequestError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        asked = {key: config[key] for key in ("accelerator", "devices", "strategy", "precision")}
        if isinstance(asked["strategy"], Strategy):
            asked["strategy"] = type(asked["strategy"]).__name__
        asked = ", ".join(f"{key}={value!r}" for key, value in asked.items())
        raise RequestError(f"trainer: {' '.join(str(error).split())[:150]} (asked for: {asked})") from error


def listed(value: Any) -> list[Any]:
    """A Trainer argument that may be none, one or many, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
