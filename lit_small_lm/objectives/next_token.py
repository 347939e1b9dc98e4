"""Next-token prediction: the exact negative log-likelihood of text, left to right.

A token that begins a document is the end token; as the target of a document's last token it asks "does the text end
here?", so every target is predicted from its own document alone. A model whose documents begin with a token of another
id reads that one in its place.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.plugin import Batch, Objective, Query, Sampler
from lit_small_lm.samplers.autoregressive import Autoregressive


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Each position predicts the token after it."""

    kind: ClassVar[Kind] = "causal"
    bound: ClassVar = "exact"

    def query(self, batch: Batch, key: tuple[int, int]) -> Query:
        tokens, doc_ids, specials = batch.tokens[:, :-1], batch.doc_ids[:, :-1], batch.specials
        if specials.begin is not None:
            tokens = torch.where(tokens == specials.end, specials.begin, tokens)
        visibility, targets = Visibility.rows(tokens, doc_ids, self.kind), batch.tokens[:, 1:]
        if batch.loss_mask is None:
            return Query(tokens, visibility, targets)
        return Query(tokens, visibility, targets, batch.loss_mask.float(), batch.loss_mask.sum(1))

    def sampler(self) -> Sampler:
        return Autoregressive()
