"""The neighbour sum: a depthwise causal convolution whose taps obey the Visibility.

out[t] = sum over j of weight[:, j] * h[j-th left neighbour of t]. A tap that would reach another document, or the
space before the row, contributes nothing.
"""

import math
from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.context import Context, Visibility
from lit_small_lm.roles import Roled
from lit_small_lm.sharding import local


class NeighbourSum(Roled, nn.Module):
    """h (B, T, C) -> weighted sum of each position and its `kernel - 1` left neighbours, channel by channel."""

    role = "convolution"

    def __init__(self, width: int, kernel: int, address: Hashable) -> None:
        super().__init__()
        self.address, self.groups = address, width
        self.weight = nn.Parameter(torch.empty(width, kernel))
        """(C, N); column j belongs to the j-th left neighbour, column 0 to the position itself."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1/sqrt(kernel), as PyTorch's depthwise convolution starts."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        weight = local(self.weight)
        count = weight.shape[1] - 1
        if not ctx.visibility.contiguous:
            return gathered(h, weight, ctx.visibility)
        if ctx.cache is not None:
            joined = ctx.cache.left(self.address, h, count)
        elif ctx.visibility.doc_ids is None:
            return whole_rows(h, weight)
        else:
            joined = F.pad(h, (0, 0, count, 0))
        return shifted(joined, weight, ctx.visibility)


def whole_rows(h: Tensor, weight: Tensor) -> Tensor:
    """Fast path for rows of one document: PyTorch's depthwise convolution."""
    width, kernel = weight.shape
    taps = weight.flip(1).unsqueeze(1).to(h.dtype)  # (C, 1, N), oldest first
    padded = F.pad(h.transpose(1, 2), (kernel - 1, 0))  # (B, C, N-1+T)
    return F.conv1d(padded, taps, groups=width).transpose(1, 2)


def shifted(joined: Tensor, weight: Tensor, visibility: Visibility) -> Tensor:
    """Fast path for packed rows and cached decoding: shifted views of h with N-1 earlier inputs before it."""
    kernel, time = weight.shape[1], visibility.positions.shape[1]
    weight = weight.to(joined.dtype)
    total = joined[:, kernel - 1 :] * weight[:, 0]
    for j in range(1, kernel):
        _, exists = visibility.neighbour(j)
        view = joined[:, kernel - 1 - j : kernel - 1 - j + time]
        total = total + torch.where(exists.unsqueeze(-1), view, 0) * weight[:, j]
    return total


def gathered(h: Tensor, weight: Tensor, visibility: Visibility) -> Tensor:
    """The plain twin: every neighbour is looked up by its index."""
    total, weight = torch.zeros_like(h), weight.to(h.dtype)
    for j in range(weight.shape[1]):
        index, exists = visibility.neighbour(j)
        found = h.gather(1, index.unsqueeze(-1).expand_as(h))
        total = total + found * exists.unsqueeze(-1) * weight[:, j]
    return total
