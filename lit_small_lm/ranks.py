"""Which process this is, and which share of the data it works on.

With tensor parallelism several processes share one share of the data.
"""

import os
from typing import Any, NamedTuple

from lit_small_lm.errors import RequestError, shown

NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "WORLD_SIZE")
"""Environment variables in which launchers number and count processes and machines."""


class DataRank(NamedTuple):
    """Share `rank` of `size` shares of every global batch."""

    rank: int
    size: int


def data_rank(trainer: Any) -> DataRank:
    """The share of the data of this process of a Lightning trainer; one share in all without several processes."""
    shares = trainer.distributed_sampler_kwargs
    return DataRank(shares["rank"], shares["num_replicas"]) if shares else DataRank(0, 1)


def data_group(trainer: Any) -> Any:
    """The process group in which every share of the data occurs once; None: all processes."""
    if data_rank(trainer).size == trainer.world_size:
        return None
    return trainer.strategy.device_mesh["data_parallel"].get_group()


def process_number() -> int:
    """The number of this process among all, as its launcher (torchrun, Lightning, SLURM) said."""
    if "RANK" in os.environ:
        return _number("RANK")
    if "LOCAL_RANK" in os.environ:
        return _number("LOCAL_RANK") if _number("NODE_RANK") == 0 else -1
    return _number("SLURM_PROCID")


def number_here() -> int:
    """The number of this process among those of its machine."""
    return _number("LOCAL_RANK" if "LOCAL_RANK" in os.environ else "SLURM_LOCALID")


def refuse_odd_numbers() -> None:
    """Raise RequestError for a variable of a launcher that holds no number; Lightning reads them, too."""
    for variable in NUMBERS:
        text = os.environ.get(variable, "0")
        if not text.isdecimal():
            raise RequestError(f"{variable}: {shown(text)!r} in the environment; allowed: a number, or unset")


def _number(variable: str) -> int:
    """An environment variable; 0 if it is none, or no number."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0
