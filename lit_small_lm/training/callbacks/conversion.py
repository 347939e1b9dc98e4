"""From an autoregressive model to a diffusion model by the size of its blocks (LLaDA 2, arXiv 2512.15745).

Blocks of one position are next-token prediction and one block as long as a row is masked diffusion, so that the way
from one to the other is a schedule of one number: it grows (warm-up), stays at the length of a row (stable), and comes
back to blocks that can be decoded from memory (decay). The learning rate has a schedule of its own (`WSDSchedule`).

The trick: nothing is remembered. The phase follows from the step, and the objective of a phase is a frozen value like
any other, put in the model's place; so noise stays a function of seed and step, a resume finds the phase it was in, and
a checkpoint records an objective that its network can be decoded with.
"""

import bisect
import itertools
import math

from lightning.pytorch import Callback, Trainer

from lit_small_lm.data.plan import Pace
from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.plugin import Batch
from lit_small_lm.training.callbacks.progress import RunProgress
from lit_small_lm.training.diffusion import DiffusionLM

BLOCKS = (1, 4, 32, 64, None, 32)
SHARES = (0.05, 0.1, 0.1, 0.1, 0.4, 0.25)
"""Of the six phases; LLaDA 2 has published block sizes, but no budgets."""


class WSDConversion(Callback):
    """Trains in phases of different block sizes, the last of which is that of the model's objective.

    Args:
        blocks: positions of a block in each phase, divisors of data.seq_len; null: a block is a whole row.
        shares: of the run's training tokens, for each phase; they add up to 1. Null: 0.05, 0.1, 0.1, 0.1, 0.4 and 0.25.
        tokens: instead of shares, training tokens of each phase, which add up to the run's.

    Raises:
        RequestError: budgets that do not add up, a block that does not divide the row, a phase without a step or with
            longer rows than there are positions, or an objective without blocks or with others than the last phase's.
    """

    def __init__(
        self,
        blocks: tuple[int | None, ...] = BLOCKS,
        shares: tuple[float, ...] | None = None,
        tokens: tuple[int, ...] | None = None,
    ) -> None:
        if shares is not None and tokens is not None:
            raise RequestError("WSDConversion.shares: given beside WSDConversion.tokens; give one of the two")
        self.blocks, self.tokens = tuple(blocks), None if tokens is None else tuple(tokens)
        self.shares = tuple(SHARES if shares is None else shares) if tokens is None else None
        self._check()
        self.starts: list[int] = []
        """The first step (from 0) of each phase, known once the run's length is."""
        self._sizes: list[int] = []
        self._told: int | None = None

    def _check(self) -> None:
        for size in self.blocks:
            if size is not None and size < 1:
                raise RequestError(f"WSDConversion.blocks: {size}; allowed: at least 1, or null for a whole row")
        name, budgets = ("shares", self.shares) if self.tokens is None else ("tokens", self.tokens)
        if len(budgets) != len(self.blocks) or not self.blocks:
            raise RequestError(
                f"WSDConversion.{name}: {len(budgets)} values for {len(self.blocks)} blocks; give as many"
            )
        for budget in budgets:
            if not (math.isfinite(budget) and budget > 0):
                raise RequestError(f"WSDConversion.{name}: {budget}; allowed: above 0")
        if self.shares is not None and abs(math.fsum(self.shares) - 1) > 1e-6:
            raise RequestError(f"WSDConversion.shares: they add up to {math.fsum(self.shares):.6g}; allowed: to 1")

    # ----------------------------------------------------------------------------------------------------- the schedule
    def phase(self, step: int) -> int:
        """The phase of optimizer step `step` (from 0)."""
        return bisect.bisect_right(self.starts, step) - 1

    def block_size(self, step: int) -> int:
        """Positions of a block at optimizer step `step` (from 0)."""
        return self._sizes[self.phase(step)]

    def setup(self, trainer: Trainer, pl_module: DiffusionLM, stage: str) -> None:
        if stage != "fit":
            return
        pace, objective = trainer.datamodule.pace, pl_module.objective
        if not isinstance(objective, Denoising):
            name = type(objective).__name__
            raise RequestError(f"WSDConversion: model.objective is {name}; allowed: BlockDiffusion or JointDiffusion")
        self._sizes = [in_positions(size, pace.seq_len) for size in self.blocks]
        last = objective.in_blocks(self._sizes[-1])
        if last != objective:
            ends = "null" if self.blocks[-1] is None else self.blocks[-1]
            whole = ", a whole row and the token it begins with" if last.parts() > pace.seq_len else ""
            raise RequestError(
                f"WSDConversion.blocks: the last is {ends}, but model.objective.block_size is {objective.parts()}; "
                f"allowed: the same, here model.objective.block_size {last.parts()}{whole}"
            )
        for size in self._sizes:
            pl_module.refuse_filled(objective.in_blocks(size), pace.seq_len)
        self.starts = self._starts(pace, trainer.max_steps)

    def _starts(self, pace: Pace, steps: int) -> list[int]:
        """The first step of each phase in a run of `steps` steps."""
        rows = pace.rows_before(steps)
        if self.tokens is None:
            ends = [round(share * rows) for share in itertools.accumulate(self.shares)]
        else:
            total = sum(self.tokens)
            if pace.steps_of_tokens(total) != steps:
                raise RequestError(
                    f"WSDConversion.tokens: {total:,} in all; the run has {rows * pace.seq_len:,} ({steps} steps); "
                    "allowed: budgets that add up to it"
                )
            ends = [-(-end // pace.seq_len) for end in itertools.accumulate(self.tokens)]
        starts = [0, *(pace.steps_reaching(end) for end in ends[:-1])]
        for number, (start, stop) in enumerate(itertools.pairwise([*starts, steps])):
            if start >= stop:
                raise RequestError(
                    f"WSDConversion.blocks: phase {number + 1} of {len(starts)} has no step in a run of {steps}; "
                    "allowed: a longer run, or fewer phases"
                )
        return starts

    # ---------------------------------------------------------------------------------------------------------- the run
    def on_train_start(self, trainer: Trainer, pl_module: DiffusionLM) -> None:
        self._told = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionLM, batch: Batch, batch_idx: int) -> None:
        size = self.block_size(trainer.global_step)
        pl_module.objective = pl_module.objective.in_blocks(size)
        pl_module.noted["block_size"] = size
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        """Say which phase it is, when one begins and after a resume."""
        phase, bar = self.phase(trainer.global_step), trainer.progress_bar_callback
        if phase != self._told and isinstance(bar, RunProgress):
            stop = [*self.starts, trainer.max_steps][phase + 1]
            bar.tell(
                f"step {trainer.global_step}/{trainer.max_steps}  conversion: phase {phase + 1} of {len(self.starts)}, "
                f"{words(self.blocks[phase])}, until step {stop}"
            )
        self._told = phase


def in_positions(size: int | None, seq_len: int) -> int:
    """Positions of a block given as in a configuration.

    A row of `seq_len` targets has one position more, that of the token it begins with; a whole row is all of them.

    Raises:
        RequestError: it does not divide the row; the nearest that does is named.
    """
    if size is None or size == seq_len:
        return seq_len + 1
    if seq_len % size:
        closest = nearest_divisor(size, seq_len)
        raise RequestError(f"WSDConversion.blocks: {size} does not divide data.seq_len {seq_len}; nearest: {closest}")
    return size


def nearest_divisor(size: int, of: int) -> int:
    """The divisor of `of` that is nearest to `size` in proportion."""
    divisors = [number for number in range(1, of + 1) if of % number == 0]
    return min(divisors, key=lambda number: abs(math.log(number / size)))


def words(size: int | None) -> str:
    """A block size in words."""
    return "one block a row" if size is None else f"blocks of {size}"
