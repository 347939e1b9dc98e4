"""Decoding memory that learns after a pass what of it to keep: a block is looked at many times before it is finished,
and of a draft only what is accepted stays."""

from collections.abc import Hashable

import torch
from torch import Tensor

from lit_small_lm.context import Cache

FORGOTTEN = -3
"""The document of positions that hold nothing of a row's text."""


class RevisedCache(Cache):
    """Keys, values and last convolution inputs, of which each pass keeps what `settle` says and no more."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self._joined: dict[Hashable, Tensor] = {}

    def left(self, address: Hashable, h: Tensor, count: int) -> Tensor:
        past = self._buffers.get(address)
        if past is None:
            past = self._buffers[address] = h.new_zeros(h.shape[0], count, h.shape[2])
        self._joined[address] = torch.cat([past, h], dim=1)  # (B, N-1+T, C)
        return self._joined[address]

    def advance(self, count: int) -> None:
        """Nothing is kept before `settle`."""

    @torch.inference_mode()
    def settle(self, columns: int, kept: Tensor | None = None) -> None:
        """Keep the first `columns` positions of the last pass, or of each row its first `kept` (B,) of them only.

        What a row does not keep goes on taking room, and belongs to no text.
        """
        for address, joined in self._joined.items():
            count = self._buffers[address].shape[1]
            self._buffers[address] = _from(joined, columns if kept is None else kept, count)
        if kept is not None:
            docs = self._buffers["doc"][:, self.length : self.length + columns]
            docs[torch.arange(columns, device=docs.device) >= kept.unsqueeze(1)] = FORGOTTEN
        self._joined.clear()
        self.length += columns


def _from(joined: Tensor, start: int | Tensor, count: int) -> Tensor:
    """`count` positions of joined (B, T, C) from `start` on, which may differ by row."""
    if isinstance(start, int):
        return joined[:, start : start + count]
    index = start.unsqueeze(1) + torch.arange(count, device=joined.device)  # (B, N-1)
    return joined.gather(1, index.unsqueeze(2).expand(-1, -1, joined.shape[2]))
