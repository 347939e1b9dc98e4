"""The canvas: rows of given text and of places to fill, laid out so that diffusion blocks of all rows share columns.

A block is counted from the first position of its document. Rows whose first place to fill lies in different blocks are
moved right by whole blocks until it does not; the columns left and right of a text are documents that see nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Frame, Specials
from lit_small_lm.samplers.padding import left_padding

BEFORE, AFTER = -1, -2
"""Documents of the columns before and after a text."""


class SamplingCanvas:
    """The state of a batch while it is being filled in; W columns.

    Args:
        prompt: (B, P) given tokens, shorter rows padded on the left; the mask's id is a place to fill.
        n: places to fill behind each prompt.
        specials: the tokenizer's special ids.
        size: positions of a block; None: the whole canvas is one.

    Raises:
        RequestError: there is no mask.
    """

    def __init__(self, prompt: Tensor, n: int, specials: Specials, size: int | None) -> None:
        if specials.mask is None:
            raise RequestError("sampler: places to fill are masks, and the tokenizer has no mask token")
        self.prompt, self.n, self.specials = prompt, n, specials
        padding = left_padding(prompt, specials)  # (B,)
        wanted = torch.nn.functional.pad(prompt, (0, n), value=specials.mask)  # (B, P+n)
        column = torch.arange(wanted.shape[1], device=prompt.device).expand(wanted.shape)
        text = column >= padding.unsqueeze(1)
        first = torch.where(text & (wanted == specials.mask), column, wanted.shape[1]).amin(1) - padding  # (B,)
        lead = torch.zeros_like(first) if size is None else (first // size).amax().sub(first // size) * size
        self.lead, self.end = lead.unsqueeze(1), (lead + wanted.shape[1] - padding).unsqueeze(1)  # (B, 1) each
        self.size = size or int(self.end.max())
        self.source = (column - padding.unsqueeze(1) + self.lead).clamp(min=0)
        """(B, P+n) where each token of the answer stands on the canvas."""
        self.text = text
        self.tokens = wanted.new_full((len(wanted), int(self.end.max())), specials.filler)  # (B, W)
        self._write(wanted)
        index = torch.arange(self.tokens.shape[1], device=prompt.device).expand(self.tokens.shape)
        self.inside = (index >= self.lead) & (index < self.end)
        self.open = self.inside & (self.tokens == specials.mask)
        """(B, W) places still to fill."""
        self.fillable = self.open.clone()
        """(B, W) places that were to fill at the beginning."""
        self.last_given = torch.where(self.inside & ~self.open, index, -1).amax(1, keepdim=True)  # (B, 1)
        self.index = index
        self._uniform: dict[tuple[int | str, ...], Tensor] = {}

    def _write(self, wanted: Tensor) -> None:
        rows = torch.arange(len(wanted), device=wanted.device).unsqueeze(1).expand(wanted.shape)
        self.tokens[rows[self.text], self.source[self.text]] = wanted[self.text]

    def visibility(self, kind: Kind, columns: slice, block_size: int | None = None, finished: int = 0) -> Visibility:
        """Who sees whom in some of the columns, of which the first `finished` see causally."""
        index, inside = self.index[:, columns], self.inside[:, columns]
        positions, docs = torch.where(inside, index - self.lead, index), None
        if not self.inside.all():
            docs = torch.where(inside, 0, torch.where(index < self.lead, BEFORE, AFTER))
        return Visibility(positions, docs, kind, block_size, finished=finished)

    def blocks(self) -> Iterator[slice]:
        """The columns of every block that has a place to fill, from left to right."""
        for start in range(0, self.tokens.shape[1], self.size):
            columns = slice(start, min(start + self.size, self.tokens.shape[1]))
            if self.open[:, columns].any():
                yield columns

    def open_in(self, columns: slice) -> Tensor:
        """(B, W) places still to fill in these columns."""
        chosen = torch.zeros_like(self.open)
        chosen[:, columns] = self.open[:, columns]
        return chosen

    def uniform(self, *key: int | str) -> Tensor:
        """(B, W) draws in [0, 1) in float64, one for each place to fill: a function of the key, the row and how many
        such places lie before it; made once for each key."""
        if key in self._uniform:
            return self._uniform[key]
        counts = enumerate(self.fillable.sum(1).tolist())
        rows = [torch.rand(n, dtype=torch.float64, generator=generator(*key, row)) for row, n in counts]
        drawn = torch.zeros(self.tokens.shape, dtype=torch.float64, device=self.tokens.device)
        drawn[self.fillable] = torch.cat(rows).to(drawn.device)
        return self._uniform.setdefault(key, drawn)

    def fill(self, chosen: Tensor, tokens: Tensor) -> None:
        """Write tokens (M,) at the chosen places (B, W)."""
        self.tokens[chosen], self.open = tokens, self.open & ~chosen

    def close(self) -> None:
        """Fill what lies behind the end of a text with its end.

        Once a row has drawn the document's end, behind every given token, and nothing before it is open, no later
        place is part of its text, nor can it change what is.
        """
        ends = self.fillable & ~self.open & (self.tokens == self.specials.end) & (self.index > self.last_given)
        width = self.tokens.shape[1]
        first_end = torch.where(ends, self.index, width).amin(1, keepdim=True)
        first_open = torch.where(self.open, self.index, width).amin(1, keepdim=True)
        behind = self.open & (first_end < first_open)
        self.tokens[behind], self.open = self.specials.end, self.open & ~behind

    def reopen(self, chosen: Tensor) -> None:
        """Empty the chosen places (B, W) again."""
        self.tokens[chosen], self.open = self.specials.mask, self.open | chosen

    def before_given(self) -> Tensor:
        """(B, W) places with a given token behind them, where the text cannot end."""
        return self.fillable & (self.index < self.last_given)

    def frame(self, nfe: int, changing: Tensor | None = None) -> Frame:
        """The answer so far; `changing` (B, W) are places that may change although they are filled."""
        unsettled = self.open if changing is None else self.open | changing
        padding = torch.nn.functional.pad(self.prompt, (0, self.n), value=self.specials.filler)
        tokens = torch.where(self.text, self.tokens.gather(1, self.source), padding)
        return Frame(tokens, nfe, ~(unsettled.gather(1, self.source) & self.text))
