"""Masked diffusion (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992): any masked tokens are restored, seen both ways.

The network is not told the time: what is masked says it. The trick: the bound is the mean over all orders in which the
tokens of a document may be drawn one by one, whatever the schedule.

A network trained on next tokens may be led there by its attention masks (DiffuLLaMA, arXiv 2410.17891): of the later
positions, which it has never seen, a growing share is shown.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.keys import fold
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.objectives.masking import Texts
from lit_small_lm.plugin import Batch, Decoding, Query, Sampler, setting
from lit_small_lm.samplers.low_confidence import LowConfidence


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Denoising):
    """Restores any masked tokens of a document from all the others."""

    ahead: float = setting(1.0, low=0, high=1, unit="probability")
    """Chance of each later position to be seen while training; the callback `AttentionAnnealing` raises it. Held-out
    figures and text are of networks that see all of them."""

    @property
    def kind(self) -> Kind:
        """ "annealed" where not every later position is seen."""
        return "bidirectional" if self.ahead == 1 else "annealed"

    def query(self, batch: Batch, key: tuple[int, int]) -> Query:
        query = super().query(batch, key)
        if self.ahead == 1:
            return query
        return replace(query, visibility=query.visibility.annealed(self.ahead, fold("ahead", *key)))

    def parts(self) -> None:
        return None

    def seen(self, texts: Texts, noisy: Tensor) -> tuple[Tensor, Visibility]:
        return noisy, texts.visibility

    def decoding(self) -> Decoding:
        return Decoding(("bidirectional",), logits_at=self.logits_at)

    def sampler(self) -> Sampler:
        return LowConfidence()
