"""The run directory: everything of a run in one place, and what it is cut to when a run resumes.

config.yaml        the resolved configuration       environment.json   versions, machine, plug-ins, command
metrics.jsonl      one JSON object a line            tensorboard/       the same, as events
checkpoints/       step=00000040.ckpt and so on,     tokenizer.json     the tokenizer in use
                   each with its .sha256              .lock              who trains here, while somebody does
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from lit_small_lm import __version__
from lit_small_lm.discovery import origins
from lit_small_lm.durable import replace
from lit_small_lm.errors import RunError, shown
from lit_small_lm.training.events import framed

PACKAGES = ("torch", "lightning", "torchmetrics", "tensorboard", "jsonargparse", "tokenizers", "numpy")


def fresh(root: Path = Path("runs")) -> Path:
    """Make a directory below `root` that did not exist, named after the time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = root / (stamp if number == 1 else f"{stamp}-{number}")
        with contextlib.suppress(FileExistsError):  # another run of the same second
            folder.mkdir(parents=True)
            return folder


def environment() -> dict[str, Any]:
    """What a later reader needs to know of where a run happened; no environment variables."""
    return {
        "lit_small_lm": __version__,
        "command": ["lit-small-lm", *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "plugins": [vars(origin) for origin in origins() if origin.source != "built-in"],
    }


def cut_metrics(file: Path, step: int) -> None:
    """Keep the lines of a metrics.jsonl up to `step`; a line torn by a crash is dropped."""
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n") if file.is_file() else []  # a pipe might never end
    replace(file, b"".join(line + b"\n" for line in lines if _step_of_line(line) <= step))


def cut_events(folder: Path, step: int) -> None:
    """Keep the TensorBoard events of a folder up to `step`."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for file in filter(Path.is_file, folder.glob("events.out.tfevents.*")):
        kept = [raw for raw in RawEventFileLoader(str(file)).Load() if Event.FromString(raw).step <= step]
        replace(file, framed(kept))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that was not written to its end.

    Raises:
        RunError: a line that is no JSON object.
    """
    found: list[dict[str, Any]] = []
    *lines, _ = (file.read_bytes() if file.exists() else b"").split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RunError(f"{shown(str(file))}: line {number} is no JSON object")
        found.append(value)
    return found


def write_json(file: Path, value: object) -> None:
    """Write JSON so that a reader never sees half of it."""
    replace(file, (json.dumps(value, indent=2) + "\n").encode())


def _step_of_line(line: bytes) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        step = None
    return step if isinstance(step, int) else math.inf
