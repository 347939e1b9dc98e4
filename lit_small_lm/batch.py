"""What travels between data, objective and network: the special ids, a batch of rows, and an objective's question."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_small_lm.context import Visibility


class Specials(NamedTuple):
    """The vocabulary size and the special ids, which the tokenizer owns."""

    vocab_size: int
    end: int
    """Begins every document, and ends it."""
    pad: int
    mask: int
    """Reserved for diffusion objectives."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens as the data module hands them out. The last column is a look-ahead for next-token targets."""

    tokens: Tensor
    """(B, T+1) token ids."""
    doc_ids: Tensor
    """(B, T+1) document of each token, unique within its split; -1 for padding."""
    loss_mask: Tensor | None
    """(B, T) positions whose target counts; None: all of them."""
    sample_ids: Tensor
    """(B,) row of the split each row is; -1 for padding rows."""
    slots: Tensor
    """(B,) place of each row in the global batch while training; the row's own number while evaluating."""
    specials: Specials
    """The tokenizer's vocabulary size and special ids."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Batch(**{name: change(t) if isinstance(t, Tensor) else t for name, t in fields.items()})


@dataclass(frozen=True)
class Query:
    """What an objective asks the network, and how the answer counts."""

    tokens: Tensor
    """(B, T) input ids."""
    visibility: Visibility
    targets: Tensor
    """(B, T) ids to score, or (M,) where `scored` picks M positions."""
    weights: Tensor | None = None
    """What each target's nats are multiplied with, of its shape; None: all one."""
    count: Tensor | None = None
    """(B,) data tokens that each row stands for: the loss is the weighted sum of nats over their number. None: every
    position is a data token."""
    scored: Tensor | None = None
    """(M,) indices into the B*T positions that need logits; None: all."""
