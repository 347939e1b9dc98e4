"""Initial weights by role.

`ScaledInit` is GPT-2's and Megatron's: output projections start smaller by the square root of twice the depth
(arXiv 1909.08053, section 3). Canon layers and norms keep their own initial values.
"""

import math
from dataclasses import dataclass

from lit_small_lm.plugin import Dims, Init, setting


@dataclass(frozen=True, kw_only=True)
class NormalInit(Init):
    """One standard deviation for every weight."""

    std_dev: float = setting(0.02, above=0)
    """Standard deviation of the normal distribution."""

    def std(self, role: str, dims: Dims) -> float:
        return self.std_dev


@dataclass(frozen=True, kw_only=True)
class ScaledInit(Init):
    """Like NormalInit, with the branches' output projections divided by sqrt(2 n_layers)."""

    std_dev: float = setting(0.02, above=0)
    """Standard deviation of everything but the output projections."""

    def std(self, role: str, dims: Dims) -> float:
        return self.std_dev / math.sqrt(2 * dims.n_layers) if role in ("out", "down") else self.std_dev
