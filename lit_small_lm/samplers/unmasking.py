"""What samplers of masked diffusion share: a canvas of masks, filled over several evaluations of the network.

Which places are filled is decided before their tokens are drawn, from time alone (`Scheduled`) or from how certain the
network is (`Confident`), and a token is drawn from real tokens only, in float64: the mask never competes with a token
for a place, where float32 noise would lose the rare ones. A place drawn alone therefore follows the network exactly.
"""

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_small_lm.context import Kind
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Decoding, Frame, Net, Sampler, Specials, setting
from lit_small_lm.samplers.asking import Asker, CachedBlocks, GuidedCanvas, WholeCanvas
from lit_small_lm.samplers.canvas import SamplingCanvas
from lit_small_lm.samplers.logits import finite, pick, probabilities, refuse_damage


@dataclass(frozen=True, kw_only=True)
class Unmasking(Sampler):
    """Fills masks over several evaluations; block after block where the network is block-causal."""

    kinds: ClassVar[tuple[Kind, ...]] = ("bidirectional", "block")
    blockwise: ClassVar[type[Asker]] = CachedBlocks
    """How a block-causal network is asked; its plain twin is `PlainBlocks`."""

    temperature: float = setting(1.0, low=0)
    """0 takes the likeliest token of a place; 1 samples from the network's own distribution."""
    top_k: int | None = setting(None, low=1, unit="tokens")
    """Only the k likeliest tokens of a place may be drawn; null: all."""
    top_p: float = setting(1.0, above=0, high=1, unit="probability")
    """Only the likeliest tokens of a place that together hold this mass may be drawn."""
    block_size: int | None = setting(None, low=1, unit="positions")
    """Positions that are filled before any behind them; null: a block of the network, or the whole text."""
    guidance: float = setting(0.0, low=0)
    """How far to move away from what the network says without the prompt, at two evaluations each time; 0: not."""

    @torch.no_grad()
    def frames(
        self, net: Net, prompt: Tensor, n: int, key: int, specials: Specials, decoding: Decoding = Decoding()
    ) -> Iterator[Frame]:
        """One frame an evaluation. Blocks of rows with prompts of different length are filled side by side.

        Raises:
            RequestError: there is no mask, guidance is asked of a block-causal network, or a first token is to be
                filled whose logits would stand before it.
        """
        canvas, asker = self.opened(net, prompt, n, specials, decoding)
        for columns in canvas.blocks():
            yield from self.filled(canvas, asker, columns, key)

    @abc.abstractmethod
    def filled(self, canvas: SamplingCanvas, asker: Asker, columns: slice, key: int) -> Iterator[Frame]:
        """Fill every open place of a block, a frame for each evaluation."""

    def opened(
        self, net: Net, prompt: Tensor, n: int, specials: Specials, decoding: Decoding
    ) -> tuple[SamplingCanvas, Asker]:
        """The canvas as it begins, and how the network is asked about it."""
        kind = next(kind for kind in self.kinds if kind in decoding.kinds)
        size = self.block_size or (decoding.block_size if kind == "block" else None)
        canvas = SamplingCanvas(prompt, n, specials, size)
        if decoding.logits_at == "before" and (canvas.open & (canvas.index == canvas.lead)).any():
            raise RequestError(
                "prompt: its first token is to be filled, and nothing stands before it to tell what it is"
            )
        if kind == "block":
            if self.guidance:
                raise RequestError(
                    f"guidance: {self.guidance}; allowed: 0, as a block-causal network sees no later block"
                )
            return canvas, self.blockwise(net, canvas, decoding)
        if self.guidance:
            return canvas, GuidedCanvas(net, canvas, decoding, self.guidance)
        return canvas, WholeCanvas(net, canvas, decoding)

    def drawn(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Tokens (M,) from `possible` logits (M, V) and uniform draws (M,)."""
        refuse_damage(finite(logits))
        return pick(logits, uniform, self.temperature, self.top_k, self.top_p)


def possible(logits: Tensor, canvas: SamplingCanvas, places: Tensor) -> Tensor:
    """logits (M, V) of places (B, W) -> the same in float64, tokens that no place may hold far below all others.

    Those are padding and mask; the document's end, too, where a given token stands behind it.
    """
    logits = logits.to(torch.float64, copy=True)
    logits[:, canvas.specials.never_drawn()] = IMPOSSIBLE
    logits[canvas.before_given()[places], canvas.specials.end] = IMPOSSIBLE
    return logits


IMPOSSIBLE = -1e300
"""A logit that leaves no probability and is finite: what is not finite is the sign of a damaged network."""


@dataclass(frozen=True, kw_only=True)
class Scheduled(Unmasking):
    """Fills each place at a time drawn beforehand; the network is asked about the places whose time has come."""

    @abc.abstractmethod
    def times(self, uniform: Tensor) -> Tensor:
        """uniform (B, W) -> any numbers that order the places of a row; equal ones are filled together."""

    def filled(self, canvas: SamplingCanvas, asker: Asker, columns: slice, key: int) -> Iterator[Frame]:
        times, uniform = self.times(canvas.uniform(key, "time")).double(), canvas.uniform(key, "sample")
        while (open := canvas.open_in(columns)).any():
            waiting = times.masked_fill(~open, torch.inf)
            chosen = open & (waiting == waiting.amin(1, keepdim=True))
            logits = possible(asker.logits(chosen, columns), canvas, chosen)
            canvas.fill(chosen, self.drawn(logits, uniform[chosen]))
            canvas.close()
            yield canvas.frame(asker.nfe)


@dataclass(frozen=True, kw_only=True)
class Confident(Unmasking):
    """Fills those places first that the network is most certain of, at least one in each step."""

    @abc.abstractmethod
    def count(self, uncertainties: Tensor) -> Tensor:
        """How many places (B,) of each row are filled; uncertainties (B, W) least first, infinite where nothing is
        open. A row with an open place fills one at least, whatever is returned."""

    def uncertainty(self, probs: Tensor) -> Tensor:
        """probs (M, V) -> (M,): what the likeliest token lacks of certainty."""
        return 1 - probs.amax(-1)

    def filled(self, canvas: SamplingCanvas, asker: Asker, columns: slice, key: int) -> Iterator[Frame]:
        uniform = canvas.uniform(key, "sample")
        while (open := canvas.open_in(columns)).any():
            logits = possible(asker.logits(open, columns), canvas, open)
            chosen = self.chosen(open, logits)
            canvas.fill(chosen, self.drawn(logits[chosen[open]], uniform[chosen]))
            canvas.close()
            yield canvas.frame(asker.nfe)

    def chosen(self, open: Tensor, logits: Tensor) -> Tensor:
        """Which of the open places (B, W) with logits (M, V) are filled."""
        uncertain = torch.full(open.shape, torch.inf, dtype=torch.float64, device=open.device)
        uncertain[open] = self.uncertainty(probabilities(logits))
        ordered, places = uncertain.sort(dim=1, stable=True)
        rank = places.argsort(dim=1)  # (B, W) of each place, from 0
        return open & (rank < self.count(ordered).clamp(min=1).unsqueeze(1))
