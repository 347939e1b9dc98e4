"""Noise schedules of masked diffusion: which share of the tokens is masked at time t, and what a masked one weighs.

With `alpha` falling from 1 to 0 and the weight -alpha'(t) / (1 - alpha(t)) the expected loss is the same for every
schedule (MDLM, arXiv 2406.07524): a schedule only decides where the draws go, and so how much the loss scatters.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lit_small_lm.plugin import Noise, setting


@dataclass(frozen=True, kw_only=True)
class LinearNoise(Noise):
    """A token is masked with probability t (LLaDA, arXiv 2502.09992)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def weight(self, t: Tensor) -> Tensor:
        return 1 / t


@dataclass(frozen=True, kw_only=True)
class LogLinearNoise(Noise):
    """A token is masked with probability (1 - epsilon) t and weighs 1 / t, as MDLM has it: the expected loss leaves out
    the last epsilon of the way, so it lies below the bound, by a share of about epsilon."""

    epsilon: float = setting(1e-3, low=0, below=1, unit="probability")
    """What is left of a token at t = 1; with 0 it is `LinearNoise`."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.epsilon) * t

    def weight(self, t: Tensor) -> Tensor:
        return 1 / t


@dataclass(frozen=True, kw_only=True)
class CosineNoise(Noise):
    """A token is masked with probability cos(pi/2 (1 - t)) (MD4, arXiv 2406.04329)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (math.pi / 2 * t).sin()

    def weight(self, t: Tensor) -> Tensor:
        return math.pi / 2 / (math.pi / 2 * t).tan()


@dataclass(frozen=True, kw_only=True)
class PolynomialNoise(Noise):
    """A token is masked with probability t^power (MD4)."""

    power: float = setting(2.0, above=0)
    """1 is linear; above it most draws mask little, below it most mask much."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def weight(self, t: Tensor) -> Tensor:
        return self.power / t


@dataclass(frozen=True, kw_only=True)
class ClippedNoise(Noise):
    """A token is masked with a probability drawn between two rates, and weighs one over it (BD3-LM, arXiv 2503.09573).

    A loss for training, and no bound unless blocks have one position: draws that say little are left out. With both
    rates 1 everything is masked, and for blocks of one position the loss is the exact negative log-likelihood.
    """

    low: float = setting(0.0, low=0, high=1, unit="probability")
    """The smallest rate."""
    high: float = setting(1.0, above=0, high=1, unit="probability")
    """The largest."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self._rate(t)

    def weight(self, t: Tensor) -> Tensor:
        return 1 / self._rate(t)

    def _rate(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t
