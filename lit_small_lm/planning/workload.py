"""What a network is trained with, as far as cost goes: rows, precision, optimizer, devices, length of the run."""

from dataclasses import dataclass
from typing import Literal

from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Objective, Optim


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training run."""

    optim: Optim
    objective: Objective = NextToken()
    seq_len: int
    """Positions of a row."""
    batch_size: int
    """Rows of an optimizer step, over all processes and accumulated batches."""
    rows: int
    """Rows that one process handles at once."""
    processes: int = 1
    tensor_parallel: int = 1
    """Processes that share the work of a layer."""
    shards: int = 1
    """Processes over which weights, gradients and optimizer state are divided; 1: each has all of them."""
    precision: str = "32-true"
    """As `trainer.precision` has it."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    activation_checkpointing: str = "off"
    average: Literal["none", "ema"] = "none"
    """Whether a moving average of the weights is kept."""
    steps: int | None = None
    """Optimizer steps; None: the length of the run depends on the data."""
    tokens: int | None = None
    """Training tokens of the run, repetitions counted; None as for `steps`."""
    every_n_steps: int = 200
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints that are kept; 0: all."""
    saving: Literal["background", "blocking"] = "blocking"
    """"background": a checkpoint is written from a copy of the state, while training goes on."""

    @property
    def data_parallel(self) -> int:
        """Processes that work on different rows."""
        return self.processes // self.tensor_parallel

    @property
    def accumulated(self) -> int:
        """Batches of one optimizer step."""
        return max(1, self.batch_size // (self.rows * self.data_parallel))
