"""First-hitting sampling (arXiv 2409.02908): the exact time at which each mask of the diffusion process is filled.

Without steps in time every place has a time of its own. Networks do not know the time, so only the order matters, and
that is uniformly random: the law is that of ancestral sampling with infinitely many steps, one token an evaluation.
"""

from dataclasses import dataclass

from torch import Tensor

from lit_small_lm.samplers.unmasking import Scheduled


@dataclass(frozen=True, kw_only=True)
class FirstHitting(Scheduled):
    """Fills one place after another, in a random order."""

    def times(self, uniform: Tensor) -> Tensor:
        return uniform
