"""Errors of libraries in words that say what to do: memory, ports, loader workers."""

import os
import re
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.signals import asked


def explained(error: Exception, trainer: Trainer, data: Any) -> Exception:
    """The error, or one that says the same in words for who runs the command."""
    text = str(error)
    if isinstance(error, (RequestError, RunError)) and not asked.lost_worker:
        return error
    if is_memory(error):
        return RunError(_memory(text, trainer, data))
    if "EADDRINUSE" in text:
        port = os.environ.get("MASTER_PORT", "?")
        return RunError(f"MASTER_PORT {port}: another program listens there; allowed: a free port, or none for any")
    told = isinstance(error, (RuntimeError, OSError, EOFError)) and asked.lost_worker
    if told or isinstance(error, (ConnectionError, EOFError)) or text.startswith("DataLoader worker"):
        return RunError(_worker(asked.lost_worker or text, trainer.global_step))
    return error


def is_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left."""
    words = ("out of memory", "can't allocate memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def _memory(text: str, trainer: Trainer, data: Any) -> str:
    asked_for = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    room = f"{os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    needed = f"; {asked_for[1]} were asked for, {free[1] if free else room} are free" if asked_for else ""
    parts = trainer.accumulate_grad_batches * trainer.world_size
    return (
        f"out of memory in step {trainer.global_step + 1}: data.batch_size {data.batch_size} in {parts} parts of "
        f"data.seq_len {data.seq_len}{needed}; lower data.micro_batch_size (the same training) or data.seq_len, or "
        "--activation_checkpointing layers"
    )


def _worker(text: str, step: int) -> str:
    number = re.search(r"pid(?:\(s\))? (\d+)", text)
    how = re.search(r"killed by signal: ([\w ]+\w)", text)
    name = f"loader worker {number[1]}" if number else "a loader worker"
    end = f"was killed by signal {how[1]}" if how else "ended"
    what = f"data.num_workers: {name} {end} (out of memory?)"
    return f"{what} in step {step + 1}; go on with --resume, and with fewer workers if it happens again"
