"""What travels between data, objective, network and sampler: special ids, a batch of rows, a question, a frame."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_small_lm.context import Context, Kind, Summing, Visibility


class Specials(NamedTuple):
    """The vocabulary size and the special ids, which the tokenizer owns."""

    vocab_size: int
    """Rows of the network's embedding."""
    end: int
    """Ends every document, and begins it unless `begin` does."""
    pad: int | None
    """Fills rows where nothing counts; None: there is none, and `end` does."""
    mask: int | None
    """Reserved for diffusion objectives; None: there is none, and they cannot be used."""
    begin: int | None = None
    """What the network reads at the beginning of a document, where that is another token than its end."""
    padding_from: int | None = None
    """Rows from here on belong to no token, and are never drawn; None: there are none."""

    @property
    def start(self) -> int:
        """The id that a document begins with, as the network reads it."""
        return self.end if self.begin is None else self.begin

    @property
    def filler(self) -> int:
        """The id that stands where nothing counts."""
        return self.end if self.pad is None else self.pad

    def never_drawn(self) -> list[int]:
        """Ids that no text goes on with: padding, the mask, and rows without a token."""
        rows = [] if self.padding_from is None else range(self.padding_from, self.vocab_size)
        return [*(i for i in (self.pad, self.mask) if i is not None), *rows]

    def ids(self) -> dict[str, int]:
        """The special ids there are, by name."""
        named = {"end": self.end, "pad": self.pad, "mask": self.mask, "begin": self.begin}
        return {name: index for name, index in named.items() if index is not None}


class Decoding(NamedTuple):
    """How the networks of an objective may be asked while text is drawn from them."""

    kinds: tuple[Kind, ...] = ("causal", "bidirectional")
    """The visibilities they answer under; a sampler asks under the first of its own that is among them."""
    block_size: int | None = None
    """Positions of a diffusion block, counted from the document's first; None: the whole document is one."""
    logits_at: Literal["own", "before"] = "own"
    """Where the logits of a masked position stand: there, or one position before, which for the first position of a
    block is the last of the finished text."""
    clean: Literal["block", "causal"] = "block"
    """How finished text of a block-causal network was seen while training: as blocks, or causally."""


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
    impossible: tuple[int, ...] = ()
    """Ids that have no probability as an answer, such as the mask."""

    def context(self, step: Tensor | None = None) -> Context:
        """What the network is told beside the tokens, while training with the optimizer steps taken so far."""
        return Context(self.visibility, step=step, impossible=self.impossible)

    def summed(self, step: Tensor | None = None) -> Context:
        """The same, which asks for the weighted sum of nats too: all that a training step needs."""
        return dataclasses.replace(self.context(step), summing=Summing(self.weights))


class Frame(NamedTuple):
    """A state of the text while it is being sampled."""

    tokens: Tensor
    """(B, T) prompt and everything sampled so far; the mask where nothing stands yet, in the last frame nowhere."""
    nfe: int
    """Network evaluations so far."""
    settled: Tensor | None = None
    """(B, T) tokens that no later frame changes; None: all of them."""
