"""Block diffusion (BD3-LM, arXiv 2503.09573; LLaDA 2, arXiv 2512.15745): blocks of a text from left to right, and the
tokens of a block in any order.

One forward pass over [noisy ; clean] trains all blocks at once: a noisy block sees itself and the clean blocks before
it. Blocks of one position with everything masked are next-token prediction; one block as long as a row is masked
diffusion, and then the clean half is left out.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.objectives.masking import Texts
from lit_small_lm.plugin import Decoding, Sampler, setting
from lit_small_lm.samplers.low_confidence import LowConfidence


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(Denoising):
    """Restores masked tokens of a block from the others of the block and from the blocks before it."""

    kind: ClassVar[Kind] = "doubled"

    block_size: int = setting(4, low=1, unit="positions")
    """Positions of a block, counted from each document's first; the last block of a document may be shorter."""

    @property
    def bound(self) -> str:
        """Exact for blocks of one position, each of which has one way to be masked; otherwise an upper bound."""
        return "exact" if self.block_size == 1 else "upper"

    def parts(self) -> int:
        return self.block_size

    def in_blocks(self, size: int) -> "BlockDiffusion":
        return replace(self, block_size=size)

    def seen(self, texts: Texts, noisy: Tensor) -> tuple[Tensor, Visibility]:
        if int(texts.visibility.positions.max()) < self.block_size:  # no document has a second block
            docs = texts.visibility.doc_ids
            return noisy, Visibility.rows(noisy, docs, "block", block_size=self.block_size)
        return torch.cat([noisy, texts.tokens], dim=1), texts.visibility.doubled(self.block_size)

    def decoding(self) -> Decoding:
        return Decoding(("block",), self.block_size, self.logits_at)

    def sampler(self) -> Sampler:
        return LowConfidence()
