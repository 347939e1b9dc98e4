"""How a canvas is put to the network: whole, or block by block with memory of the finished blocks.

Finished blocks of a block-causal network never change, so their keys, values and last convolution inputs are kept
exactly. The trick: the pass that takes a finished block into the memory is also the first one of the next block, so
that memory costs no evaluation of its own.
"""

import abc

import torch
from torch import Tensor

from lit_small_lm.context import Context, Visibility
from lit_small_lm.plugin import Decoding, Net
from lit_small_lm.samplers.canvas import SamplingCanvas
from lit_small_lm.samplers.memory import RevisedCache


class Asker(abc.ABC):
    """Asks the network about places of a canvas, and counts how often."""

    def __init__(self, net: Net, canvas: SamplingCanvas, decoding: Decoding) -> None:
        self.net, self.canvas, self.decoding = net, canvas, decoding
        self.back = 1 if decoding.logits_at == "before" else 0
        """How many positions before a place its logits stand."""
        self.nfe = 0

    @abc.abstractmethod
    def logits(self, wanted: Tensor, columns: slice) -> Tensor:
        """Logits (M, V) of the wanted places (B, W), all of them in one block's columns; head at these places alone."""

    @torch.inference_mode()
    def _ask(self, tokens: Tensor, ctx: Context, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits (M, V) at these rows (M,) and columns (M,) of tokens (B, T)."""
        self.nfe += 1
        return self.net(tokens, ctx, scored=rows * tokens.shape[1] + columns)

    def _seen(self, columns: slice, finished: int) -> Visibility:
        """Who sees whom in some columns, the first `finished` of which are of finished blocks."""
        causal = finished if self.decoding.clean == "causal" else 0
        return self.canvas.visibility("block", columns, self.canvas.size, causal)


class WholeCanvas(Asker):
    """Every position sees the whole canvas: networks trained bidirectionally."""

    def logits(self, wanted: Tensor, columns: slice) -> Tensor:
        return self._answer(self.canvas.tokens, wanted)

    def _answer(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        rows, places = wanted.nonzero(as_tuple=True)
        ctx = Context(self.canvas.visibility("bidirectional", slice(None)))
        return self._ask(tokens, ctx, rows, places - self.back)


class GuidedCanvas(WholeCanvas):
    """Classifier-free guidance without a classifier (arXiv 2410.18514): away from what the network says when it sees
    only the document's beginning and what was drawn. Two evaluations each time.

    logits + scale (logits - unguided logits), which for scale 0 are the logits.
    """

    def __init__(self, net: Net, canvas: SamplingCanvas, decoding: Decoding, scale: float) -> None:
        super().__init__(net, canvas, decoding)
        self.scale = scale
        self.hidden = canvas.inside & ~canvas.fillable & (canvas.index > canvas.lead)

    def logits(self, wanted: Tensor, columns: slice) -> Tensor:
        seen = self._answer(self.canvas.tokens, wanted)
        without = self._answer(self.canvas.tokens.masked_fill(self.hidden, self.canvas.specials.mask), wanted)
        return seen + self.scale * (seen - without)


class PlainBlocks(Asker):
    """Every position sees its block and those before it; all of them are computed anew each time."""

    def logits(self, wanted: Tensor, columns: slice) -> Tensor:
        rows, places = wanted.nonzero(as_tuple=True)
        upto = slice(0, columns.stop)
        ctx = Context(self._seen(upto, columns.start))
        return self._ask(self.canvas.tokens[:, upto], ctx, rows, places - self.back)


class CachedBlocks(Asker):
    """The fast twin of `PlainBlocks`: finished blocks are computed once.

    Where logits stand one position before, those of a block's first place come from the pass that finished the block
    before it, and are carried along.
    """

    def __init__(self, net: Net, canvas: SamplingCanvas, decoding: Decoding) -> None:
        super().__init__(net, canvas, decoding)
        self.cache, self.carried = RevisedCache(canvas.tokens.shape[1]), None

    def logits(self, wanted: Tensor, columns: slice) -> Tensor:
        rows, places = wanted.nonzero(as_tuple=True)
        places = places - self.back
        inside = places >= columns.start
        if self.cache.length < columns.start:
            return self._first(rows, places, inside, columns)
        if inside.all():
            return self._within(rows, places, columns, keep=0)
        found = self.carried[rows]
        if inside.any():
            found[inside] = self._within(rows[inside], places[inside], columns, keep=0)
        return found

    def _first(self, rows: Tensor, places: Tensor, inside: Tensor, columns: slice) -> Tensor:
        """Take the finished text into the memory, and ask about the next block in the same pass."""
        needed = slice(self.cache.length, columns.stop if inside.any() else columns.start)
        keep = columns.start - self.cache.length
        if not self.back:
            return self._within(rows, places, needed, keep)
        row = torch.arange(len(self.canvas.tokens), device=rows.device)
        edge = torch.full_like(row, columns.start - 1)
        found = self._within(torch.cat([row, rows[inside]]), torch.cat([edge, places[inside]]), needed, keep)
        self.carried, rest = found.split([len(row), int(inside.sum())])
        answer = self.carried[rows]
        answer[inside] = rest
        return answer

    def _within(self, rows: Tensor, places: Tensor, columns: slice, keep: int) -> Tensor:
        """One pass over some columns, of which the first `keep` are remembered."""
        ctx = Context(self._seen(columns, keep), self.cache)
        logits = self._ask(self.canvas.tokens[:, columns], ctx, rows, places - columns.start)
        self.cache.settle(keep)
        return logits
