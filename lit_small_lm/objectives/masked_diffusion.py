"""Masked diffusion (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992): any masked tokens are restored, seen both ways.

The network is not told the time: what is masked says it. The trick: the bound is the mean over all orders in which the
tokens of a document may be drawn one by one, whatever the schedule.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.objectives.masking import Texts
from lit_small_lm.plugin import Decoding, Sampler
from lit_small_lm.samplers.low_confidence import LowConfidence


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Denoising):
    """Restores any masked tokens of a document from all the others."""

    kind: ClassVar[Kind] = "bidirectional"

    def parts(self) -> None:
        return None

    def seen(self, texts: Texts, noisy: Tensor) -> tuple[Tensor, Visibility]:
        return noisy, texts.visibility

    def decoding(self) -> Decoding:
        return Decoding((self.kind,), logits_at=self.logits_at)

    def sampler(self) -> Sampler:
        return LowConfidence()
