"""Parallel residuals (GPT-J, GPT-NeoX, arXiv 2204.06745): both branches of a layer read the same stream."""

from dataclasses import dataclass

from torch import Tensor, nn

from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.plugin import Branch, Norm, NormScheme, Site

Carry = tuple[Tensor, Tensor]
"""What the branches of a layer read, and that plus what they have written so far."""


@dataclass(frozen=True, kw_only=True)
class ParallelNorm(NormScheme):
    """x + mixer(norm(x)) + ffn(norm(x)), a norm for each, and a final norm."""

    norm: Norm = LayerNorm()
    """The operator, also of the final norm."""

    def open(self, dim: int) -> nn.Module:
        return OpenPair()

    def build(self, site: Site) -> nn.Module:
        norm = self.norm.build(site.dim)
        return ParallelPath(norm) if site.place == "mixer" else JoiningPath(norm)

    def close(self, dim: int) -> nn.Module:
        return ClosePair(self.norm.build(dim))


class OpenPair(nn.Module):
    """x -> (x, x)."""

    def forward(self, x: Tensor) -> Carry:
        return x, x


class ParallelPath(nn.Module):
    """(x, y) -> (x, y + branch(norm(x)))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, carry: Carry, branch: Branch) -> Carry:
        x, y = carry
        return x, y + branch(self.norm(x))


class JoiningPath(ParallelPath):
    """(x, y) -> (z, z) with z = y + branch(norm(x)): the next layer reads the sum."""

    def forward(self, carry: Carry, branch: Branch) -> Carry:
        _, z = super().forward(carry, branch)
        return z, z


class ClosePair(nn.Module):
    """(x, x) -> norm(x)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, carry: Carry) -> Tensor:
        return self.norm(carry[0])
