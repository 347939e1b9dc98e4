"""Hooks of a training step that do nothing, so that nothing is spent on calling them.

At every step Lightning calls six hooks of the module and of each callback, most of which are the empty ones of its base
classes; around each call it sets and restores what it knows of the module, which for a tiny network takes longer than
the layers. A hook that is not callable it passes over (`trainer/call.py`), and that is what empty ones are made here
while a fit runs.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
"""Hooks that every step calls."""


def signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that knows its signature, which Lightning takes apart at every step."""
    function.__signature__ = inspect.signature(function)
    return function


def pass_over_idle(trainer: Trainer) -> None:
    """Let Lightning pass over the hooks of a step that are empty."""
    call_idle(trainer)  # a fit that failed has not
    for part, base in _parts(trainer):
        for name in STEP:
            empty = getattr(type(part), name, None) is getattr(base, name)
            if empty and name not in vars(part):  # one set on the object itself is not
                setattr(part, name, None)


def call_idle(trainer: Trainer) -> None:
    """Undo `pass_over_idle`."""
    for part, _ in _parts(trainer):
        for name in STEP:
            if vars(part).get(name, part) is None:
                del vars(part)[name]


def _parts(trainer: Trainer) -> Iterator[tuple[Any, type]]:
    """The callbacks and the module, if there is one yet, each with the base class whose hooks are empty."""
    yield from ((callback, Callback) for callback in trainer.callbacks)
    if trainer.lightning_module is not None:
        yield trainer.lightning_module, LightningModule
