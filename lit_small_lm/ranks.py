"""Which share of the data a process works on: with tensor parallelism, several processes share one."""

from typing import Any, NamedTuple


class DataRank(NamedTuple):
    """Share `rank` of `size` shares of every global batch."""

    rank: int
    size: int


def data_rank(trainer: Any) -> DataRank:
    """The share of the data of this process of a Lightning trainer; one share in all without several processes."""
    shares = trainer.distributed_sampler_kwargs
    return DataRank(shares["rank"], shares["num_replicas"]) if shares else DataRank(0, 1)
