"""Disk: the token store, and the checkpoints that a run keeps."""

from dataclasses import dataclass

from lit_small_lm.planning.workload import Workload

SMALL_IDS = 1 << 16
"""Ids up to which a token takes two bytes in a store; beyond it takes four."""


@dataclass(frozen=True)
class Disk:
    """What a run writes."""

    token_bytes: int
    """Of one token in a store."""
    store_bytes: int | None
    """Of a store with the tokens of the run, none of them read twice; None: nobody knows how many there are."""
    checkpoint_bytes: int
    """Of one checkpoint: weights, optimizer state, and the moving average if there is one."""
    kept: int | None
    """Checkpoints that are there at once, the one that is being written included; None: depends on the data."""
    checkpoints_bytes: int | None
    total_bytes: int | None


def disk(workload: Workload, vocab_size: int, weight_bytes: int, optimizer_bytes: int) -> Disk:
    """What a run writes to disk, at most.

    Args:
        workload: the run.
        vocab_size: ids of the tokenizer.
        weight_bytes: of all weights, as training holds them.
        optimizer_bytes: of the optimizer's whole state.
    """
    token = 2 if vocab_size <= SMALL_IDS else 4
    store = None if workload.tokens is None else workload.tokens * token
    copies = 2 if workload.average == "ema" else 1
    checkpoint, kept = copies * weight_bytes + optimizer_bytes, _kept(workload)
    checkpoints = None if kept is None else kept * checkpoint
    total = None if store is None or checkpoints is None else store + checkpoints
    return Disk(token, store, checkpoint, kept, checkpoints, total)


def _kept(workload: Workload) -> int | None:
    """The newest ones, the last one before the decay, and the new one that is written before an old one goes."""
    written = None if workload.steps is None else -(-workload.steps // workload.every_n_steps)
    if workload.keep == 0:
        return written
    most = workload.keep + 2
    return most if written is None else min(written, most)
