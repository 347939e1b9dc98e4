"""Memory of training: what a process holds at its fullest moment, and of what it consists.

A rule of thumb such as parameters times bytes plus one hidden state a token misses small networks by an order of
magnitude: most of their memory is what every operation keeps for the backward pass. That is not estimated here but
rehearsed with the run's own network, precision and optimizer (see `rehearsal`).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.rehearsal import HELD_IN, StepBytes, rehearse
from lit_small_lm.planning.workload import Workload

Moment = Literal["forward pass", "backward pass", "optimizer step"]

SLACK = 0.29
"""What glibc's heap holds free after a few steps, as a share of the tensors that come out of it (those of at most
`ledger.POOLED` bytes) at their most. Measured on six networks, OTHERS of benchmarks/plan_accuracy.py."""


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one process that trains, in bytes."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    """Of the moving average of the weights."""
    activations_bytes: int
    """What embedding and layers keep for the backward pass."""
    head_bytes: int
    """What head and loss keep for it."""
    copy_bytes: int
    """Of the state, while a checkpoint is written in the background; of several processes one has it, and that of a GPU
    lies in the host's memory."""
    exchange_bytes: int
    """Between processes: gradients once more, in buckets, or the sharded weights that are whole at the moment."""
    temporary_bytes: int
    """What comes and goes at the fullest moment, beside the above."""
    allocator_bytes: int
    """What the allocator holds free; on a CPU `SLACK` of the tensors that come out of its heap, elsewhere not known."""
    total_bytes: int
    fullest: Moment


def training(outline: Outline, workload: Workload) -> TrainingMemory:
    """The memory that training takes on each process.

    Not in it: the Python process and its libraries, and on a GPU its context and what its allocator holds free.

    Raises:
        RequestError: parts of the family that do not go together.
    """
    return divided(rehearse(outline, workload), workload, gathered(outline, workload))


def gathered(outline: Outline, workload: Workload) -> int:
    """Bytes of the weights that FSDP2 makes whole at once: those outside the layers, the layer that runs, and the next
    one, which is fetched meanwhile."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in outline.sketch.layers]
    outside = sum(p.numel() for p in outline.sketch.parameters()) - sum(layers)
    return (outside + 2 * max(layers)) * HELD_IN.get(workload.precision, torch.float32).itemsize


def divided(found: StepBytes, workload: Workload, whole: int = 0) -> TrainingMemory:
    """What a rehearsal found, on each process of a run; of sharded weights `whole` bytes are gathered at once."""
    share = workload.shards
    weights, gradients, optimizer = (-(-n // share) for n in (found.weights, found.gradients, found.optimizer))
    spared = found.weights + found.gradients + found.optimizer - (weights + gradients + optimizer)
    average = found.weights if workload.average == "ema" else 0
    exchange = (found.gradients if workload.data_parallel > 1 else 0) if share == 1 else whole
    moments: dict[Moment, int] = {
        "forward pass": found.forward,
        "backward pass": found.backward,
        "optimizer step": found.update,
    }
    fullest = max(moments, key=moments.__getitem__)
    copied = found.weights + found.optimizer + average
    copy = copied if workload.accelerator == "cpu" and workload.saving == "background" else 0
    alive = moments[fullest] - spared + average + copy + exchange
    pooled = max(found.forward_pooled, found.backward_pooled, found.update_pooled) - spared
    slack = round(SLACK * max(0, pooled)) if workload.accelerator == "cpu" else 0
    kept = weights + gradients + optimizer + average + copy + exchange + found.activations + found.head
    return TrainingMemory(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        average_bytes=average,
        activations_bytes=found.activations,
        head_bytes=found.head,
        copy_bytes=copy,
        exchange_bytes=exchange,
        temporary_bytes=alive - kept,
        allocator_bytes=slack,
        total_bytes=alive + slack,
        fullest=fullest,
    )
