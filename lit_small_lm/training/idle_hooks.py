"""Hooks of a training step that do nothing, so that nothing is spent on calling them.

At every step Lightning calls six hooks of the module and of each callback, most of which are the empty ones of its base
classes; around each call it sets and restores what it knows of the module, which for a tiny network takes longer than
the layers. A hook that is not callable it passes over (`trainer/call.py`), and that is what empty ones are made here
while a fit runs.
"""

from collections.abc import Iterator
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


def pass_over_idle(trainer: Trainer) -> None:
    """Let Lightning pass over the hooks of a step that are empty."""
    for part, name in _idle(trainer):
        setattr(part, name, None)


def call_idle(trainer: Trainer) -> None:
    """Undo `pass_over_idle`."""
    for part, name in _idle(trainer):
        vars(part).pop(name, None)


def _idle(trainer: Trainer) -> Iterator[tuple[Any, str]]:
    """The callbacks and the module, each with the names of its empty hooks; a hook set on the object itself is not."""
    for part, base in [
        *((callback, Callback) for callback in trainer.callbacks),
        (trainer.lightning_module, LightningModule),
    ]:
        for name in STEP:
            if getattr(type(part), name) is getattr(base, name) and vars(part).get(name) is None:
                yield part, name
