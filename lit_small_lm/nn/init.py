"""Initial weights by role.

`ScaledInit` is GPT-2's and Megatron's: output projections start smaller by the square root of twice the depth
(arXiv 1909.08053, section 3). `DepthScaledInit` has the layer's own number in its place (arXiv 1908.11365); `FanInInit`
is LeCun's; `ZeroOutInit` is Fixup's and muP's choice for the last layer of a branch (arXiv 1901.09321, 2203.03466).
Canon layers and norms keep their own initial values.
"""

import math
from dataclasses import dataclass

from lit_small_lm.plugin import Dims, Init, setting

OUTPUTS = ("out", "down")
"""Roles of the projections that write a branch's output."""
TABLES = ("embedding", "positions", "head")
"""Roles of weights outside the layers."""


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
        return self.std_dev / math.sqrt(2 * dims.n_layers) if role in OUTPUTS else self.std_dev


@dataclass(frozen=True, kw_only=True)
class DepthScaledInit(Init):
    """Like NormalInit, with the output projections of layer l divided by sqrt(2 l), layers counted from 1."""

    std_dev: float = setting(0.02, above=0)
    """Standard deviation of everything but the output projections."""

    def std(self, role: str, dims: Dims) -> float:
        return self.std_dev

    def std_at(self, role: str, dims: Dims, fan_in: int, layer: int | None) -> float:
        within = layer is not None and role in OUTPUTS
        return self.std_dev / math.sqrt(2 * (layer + 1)) if within else self.std_dev


@dataclass(frozen=True, kw_only=True)
class FanInInit(Init):
    """Deviation gain / sqrt(fan_in) inside the layers, so that outputs vary as much as inputs at every width."""

    gain: float = setting(1.0, above=0)
    """Deviation of an output whose inputs have deviation one."""
    std_dev: float = setting(0.02, above=0)
    """Standard deviation of tables and of the output head."""

    def std(self, role: str, dims: Dims) -> float:
        if role in TABLES:
            return self.std_dev
        fan_in = {"out": dims.n_heads * dims.head_dim, "down": dims.hidden}.get(role, dims.dim)
        return self.gain / math.sqrt(fan_in)

    def std_at(self, role: str, dims: Dims, fan_in: int, layer: int | None) -> float:
        return self.std_dev if role in TABLES else self.gain / math.sqrt(fan_in)


@dataclass(frozen=True, kw_only=True)
class ZeroOutInit(Init):
    """Like NormalInit, with the branches' output projections at zero: the network starts as embedding and head."""

    std_dev: float = setting(0.02, above=0)
    """Standard deviation of everything but the output projections."""

    def std(self, role: str, dims: Dims) -> float:
        return 0.0 if role in OUTPUTS else self.std_dev
