"""Positions: rotary (RoPE, arXiv 2104.09864; half-split pairs as in Llama), learned (GPT-2), or none."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_small_lm.context import Cache, Context
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Embedding, Positions, RotaryScaling, setting


@dataclass(frozen=True, kw_only=True)
class Rotary(Positions):
    """Rotates pairs of query and key channels by an angle that grows with the position."""

    base: float = setting(10000.0, above=0)
    """Wavelengths run from 2 pi to 2 pi base positions."""
    share: float = setting(1.0, above=0, high=1)
    """The share of each head that is rotated, from its first channel on."""
    scaling: RotaryScaling | None = None
    """How wavelengths are stretched for texts longer than those of the pre-training; null: not at all."""

    def rotate(self, head_dim: int) -> nn.Module:
        width = int(head_dim * self.share)
        if width % 2 or width == 0:
            raise RequestError(
                f"positions.share {self.share} of head_dim {head_dim} rotates {width} channels; allowed: even"
            )
        return Rotate(width, self.base, self.scaling)

    def limit(self) -> None:
        return None


class Rotate(nn.Module):
    """q, k -> rotated q, k; the table of angles is shared by all layers of a forward pass."""

    def __init__(self, width: int, base: float, scaling: RotaryScaling | None = None) -> None:
        super().__init__()
        self.width, self.base, self.scaling = width, base, scaling

    def forward(self, q: Tensor, k: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        key = ("rotary", self.width, self.base, self.scaling)
        cos, sin = ctx.trace.once(key, lambda: self.table(ctx.visibility.positions, q.dtype, ctx.cache))
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def table(self, positions: Tensor, dtype: torch.dtype, memory: Cache | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, T, width) of each position's angles, computed in float32 or better; a pair's first channel
        has its sine negative. The frequencies are kept in the memory, where there is one."""
        exact = torch.promote_types(dtype, torch.float32)
        make = functools.partial(self.frequencies, exact, positions.device)
        key = ("frequencies", self.width, self.base, self.scaling, exact)
        frequencies = make() if memory is None else memory.once(key, make)
        return (_kept_table if torch.compiler.is_compiling() else _table)(positions, frequencies, dtype)

    def frequencies(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(width,) what positions are multiplied with: those of the first channels of the pairs, negative, and those of
        the second ones."""
        exponent = torch.arange(0, self.width, 2, device=device, dtype=dtype) / self.width
        frequencies = self.base**-exponent  # (width/2,)
        if self.scaling is not None:
            frequencies = self.scaling.frequencies(frequencies)
        return torch.cat([-frequencies, frequencies])

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if x.shape[-1] == self.width:
            return torch.addcmul(x * cos, _exchanged(x), sin)  # pairs (a, b) -> (a, b) cos + (-b, a) sin
        turned, rest = x.split([self.width, x.shape[-1] - self.width], dim=-1)
        return torch.cat([self._turn(turned, cos, sin), rest], dim=-1)


def _table(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, width) of positions (B, T) times frequencies (width,)."""
    angles = positions.unsqueeze(1).unsqueeze(3) * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


_kept_table = torch.library.custom_op("lit_small_lm::rotary_table", _table, mutates_args=())
"""The same as an operator, which compiled networks keep for the backward pass; each layer would compute it again."""


@_kept_table.register_fake
def _(positions, frequencies, dtype):
    shape = (positions.shape[0], 1, positions.shape[1], frequencies.shape[0])
    return tuple(frequencies.new_empty(shape, dtype=dtype) for _ in range(2))


def _exchanged(x: Tensor) -> Tensor:
    """x with the halves of its channels exchanged, in the form that eager PyTorch or its compiler is quicker at."""
    if torch.compiler.is_compiling():
        return x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x.roll(x.shape[-1] // 2, -1)


@dataclass(frozen=True, kw_only=True)
class Learned(Positions):
    """One learned vector a position, added to the embedded token."""

    length: int = setting(1024, low=1, unit="positions")
    """How many positions there are; longer documents are refused."""

    def embed(self, dim: int) -> nn.Module:
        return LearnedTable(self.length, dim)

    def limit(self) -> int:
        return self.length


class LearnedTable(nn.Module):
    """x (B, T, D) -> x plus the vector of its position."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.table = Embedding(length, dim, role="positions")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x + self.table(ctx.visibility.positions)


@dataclass(frozen=True, kw_only=True)
class NoPositions(Positions):
    """No positions at all (NoPE, arXiv 2305.19466)."""

    def limit(self) -> None:
        return None
