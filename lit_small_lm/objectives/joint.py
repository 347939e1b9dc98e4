"""Autoregressive and block diffusion at once (as Nemotron-Labs-Diffusion and I-DLM): one network, decoded both ways.

One forward pass over [noisy ; clean]: the noisy half is asked as in block diffusion, the clean half sees causally and
is asked for its next tokens. While decoding, finished text is therefore seen causally, too, and a draft made by
diffusion can be verified from left to right.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.objectives.masking import Texts, draw
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Batch, Decoding, Objective, Query, Sampler, setting
from lit_small_lm.samplers.low_confidence import LowConfidence


@dataclass(frozen=True, kw_only=True)
class JointDiffusion(Denoising):
    """The next-token loss of the clean half plus the weighted loss of block diffusion on the noisy one."""

    kind: ClassVar[Kind] = "doubled"

    block_size: int = setting(4, low=1, unit="positions")
    """Positions of a block, counted from each document's first; the last block of a document may be shorter."""
    diffusion_weight: float = setting(0.3, low=0)
    """What the diffusion loss is multiplied with; that of the next token has weight 1."""

    def parts(self) -> int:
        return self.block_size

    def in_blocks(self, size: int) -> "JointDiffusion":
        return replace(self, block_size=size)

    def seen(self, texts: Texts, noisy: Tensor) -> tuple[Tensor, Visibility]:
        return torch.cat([noisy, texts.tokens], dim=1), texts.visibility.doubled(self.block_size, "causal")

    def query(self, batch: Batch, key: tuple[int, int]) -> Query:
        texts = self.texts(batch)
        views = draw(texts, key, self.noise, self.estimator, self.block_size)
        restoring, _ = self.ask(texts, views, batch.specials)
        rows, columns = texts.counted.repeat_interleave(len(views), 0).nonzero(as_tuple=True)
        before = rows * restoring.tokens.shape[1] + texts.tokens.shape[1] + columns - 1  # in the clean half
        joined = replace(
            restoring,
            targets=torch.cat([texts.tokens[rows // len(views), columns], restoring.targets]),
            weights=torch.cat([torch.ones_like(rows).double(), self.diffusion_weight * restoring.weights]),
            scored=torch.cat([before, restoring.scored]),
        )
        return self._averaged(joined, texts, len(views), batch.tokens.shape[1] - 1)

    def beside(self) -> Objective:
        return NextToken()

    def decoding(self) -> Decoding:
        return Decoding(("causal", "block"), self.block_size, self.logits_at, "causal")

    def sampler(self) -> Sampler:
        return LowConfidence()
