"""Who may look at whom: the only place that knows which positions see which.

Attention masks and convolution taps both come from a `Visibility`, so that a convolution can never see what attention
may not. While an autoregressive network is made to look both ways (DiffuLLaMA, arXiv 2410.17891), later positions are
seen by chance. Under block diffusion (BD3-LM, arXiv 2503.09573) one forward pass trains every block: the row stands
there twice, noisy and clean. A noisy block sees itself and the clean blocks before it, which is what it sees while
decoding; the trick is that the left neighbours of a block's first noisy tokens are clean ones, too.

Shape legend: see `context`.
"""

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_small_lm.keys import uniform

Kind = Literal["causal", "annealed", "bidirectional", "block", "doubled"]


class Place(NamedTuple):
    """Where positions stand: their index within their document, which document (None: one document a row), whether
    they are clean, that is of the clean half of a doubled row or finished (None: the row has no such positions), and
    which block of their document they lie in (None: that is yet to be worked out)."""

    position: Tensor
    doc: Tensor | None
    clean: Tensor | None = None
    block: Tensor | None = None

    def unsqueeze(self, dim: int) -> "Place":
        return Place(*(None if part is None else part.unsqueeze(dim) for part in self))

    def at(self, *index: Tensor | int) -> "Place":
        return Place(*(None if part is None else part[index] for part in self))


class Layout(NamedTuple):
    """What says all about rows that lie alike in every batch."""

    length: int
    """T."""
    start: int
    kind: Kind
    block_size: int | None
    clean: Literal["block", "causal"]
    finished: int


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Who may look at whom in rows of packed documents; documents never see each other."""

    positions: Tensor
    """(B, T) index of each position within its document, from 0."""
    doc_ids: Tensor | None = None
    """(B, T) document of each position, an id of its own for every document of a row; None: every row is one document
    (the fast paths need no mask)."""
    kind: Kind = "causal"
    """"causal": a position sees itself and what came before; "bidirectional": its whole document; "annealed": what came
    before, and each later position of its document by chance (see `annealed`); "block": its whole block and every block
    before it; "doubled": T/2 noisy positions and the same positions clean behind them, where a
    noisy one sees its own noisy block and the clean blocks before it, and a clean one sees clean ones only."""
    block_size: int | None = None
    """Positions of a block, counted from each document's beginning, so that no block lies in two documents; None: a
    document is one block. For the kinds "block" and "doubled"."""
    clean: Literal["block", "causal"] = "block"
    """How clean positions of a doubled row see each other: as in kind "block", or causally."""
    finished: int = 0
    """Leading positions of rows of kind "block" that see causally, as clean positions of a doubled row may have."""
    ahead: Tensor | None = None
    """Of kind "annealed": the chance of each later position to be seen, a 0-d tensor; None: none is."""
    key: Tensor | None = None
    """Of kind "annealed": what the chance is drawn with, a 0-d tensor."""
    start: int | None = None
    """What the positions of every row, or of both its halves, count from where every row is one document; None: that
    is not known."""

    @classmethod
    def rows(
        cls,
        tokens: Tensor,
        doc_ids: Tensor | None = None,
        kind: Kind = "causal",
        start: int = 0,
        block_size: int | None = None,
    ) -> "Visibility":
        """Visibility of whole rows `tokens` (B, T): positions count from `start`, from 0 again in each document.

        Of kind "doubled", the second half of each row is the first one again, and so are its documents.
        """
        if kind == "doubled":
            half = cls.rows(tokens.chunk(2, 1)[0], None if doc_ids is None else doc_ids.chunk(2, 1)[0])
            return half.doubled(block_size)
        index = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand(tokens.shape)  # (B, T)
        if doc_ids is None:
            return cls(index, None, kind, block_size, start=start)
        opens = torch.zeros_like(doc_ids, dtype=torch.bool)
        opens[:, 1:] = doc_ids[:, 1:] != doc_ids[:, :-1]
        return cls(index - torch.where(opens, index, 0).cummax(1).values, doc_ids, kind, block_size)

    def doubled(self, block_size: int | None, clean: Literal["block", "causal"] = "block") -> "Visibility":
        """The visibility of [noisy ; clean], (B, 2T), where both halves are rows like this one."""
        docs = None if self.doc_ids is None else self.doc_ids.repeat(1, 2)
        return Visibility(self.positions.repeat(1, 2), docs, "doubled", block_size, clean, start=self.start)

    @classmethod
    def laid_out(cls, layout: Layout, device: torch.device | None = None) -> "Visibility":
        """One row for all rows of a layout."""
        length, start, kind, block_size, clean, finished = layout
        tokens = torch.empty(1, length, device=device)
        if kind == "doubled":
            return cls.rows(tokens.chunk(2, 1)[0], start=start).doubled(block_size, clean)
        return dataclasses.replace(cls.rows(tokens, None, kind, start, block_size), finished=finished)

    @property
    def layout(self) -> Layout | None:
        """How rows of one document lie; None where they may differ, or what is seen is drawn."""
        if self.start is None or self.kind == "annealed":
            return None
        return Layout(self.positions.shape[1], self.start, self.kind, self.block_size, self.clean, self.finished)

    @property
    def alike(self) -> "Visibility":
        """One row for all where rows lie alike in every batch, and otherwise the rows as they are."""
        return self if self.layout is None else Visibility.laid_out(self.layout, self.positions.device)

    def annealed(self, ahead: float, key: int) -> "Visibility":
        """The same rows seen causally, and beside that each later position of a document with chance `ahead`.

        Whether a position is seen is drawn as a function of `key`, of its document and of both positions, once for all
        layers; 0 is causal, 1 bidirectional. Both are kept as tensors, so that a compiled network is not compiled anew.
        """
        share = torch.tensor(ahead, dtype=torch.float64)
        return dataclasses.replace(self, kind="annealed", ahead=share, key=torch.tensor(key))

    @property
    def place(self) -> Place:
        index = torch.arange(self.positions.shape[1], device=self.positions.device)
        if self.kind == "doubled":
            clean = index >= len(index) // 2
        elif self.finished:
            clean = index < self.finished
        else:
            return Place(self.positions, self.doc_ids)
        return Place(self.positions, self.doc_ids, clean.expand(self.positions.shape))

    @property
    def whole(self) -> bool:
        """Whether the kind says all about who sees whom, so that attention needs no mask."""
        return self.kind in ("causal", "bidirectional") and self.doc_ids is None

    @property
    def contiguous(self) -> bool:
        """Whether left neighbours lie side by side in the row, so that a convolution may shift instead of gather."""
        return self.kind != "doubled"

    def block(self, position: Tensor) -> Tensor:
        """The block of its document that each position lies in."""
        return torch.zeros_like(position) if self.block_size is None else position // self.block_size

    def _block_of(self, place: Place) -> Tensor:
        return self.block(place.position) if place.block is None else place.block

    def visible(self, q: Place, k: Place, window: int | None = None) -> Tensor:
        """Whether query places see key places (broadcast); `window` counts the visible keys of a causal query, itself
        included, and otherwise how far off a key may be."""
        distance = q.position - k.position
        seen = self._seen(q, k, distance)
        if window is not None:
            seen = seen & (distance.abs() < window)
        return seen if q.doc is None or k.doc is None else seen & (q.doc == k.doc)

    def _seen(self, q: Place, k: Place, distance: Tensor) -> Tensor:
        """What the kind allows within one document."""
        if self.kind == "causal":
            return distance >= 0
        if self.kind == "bidirectional":
            return torch.ones_like(distance, dtype=torch.bool)
        if self.kind == "annealed":
            return distance >= 0 if self.ahead is None else (distance >= 0) | self._drawn(q, k)
        ahead = self._block_of(q) - self._block_of(k)
        if q.clean is None:
            return ahead >= 0
        if self.kind == "block":
            return torch.where(q.clean, distance >= 0, ahead >= 0)
        by_noisy = torch.where(k.clean, ahead > 0, ahead == 0)
        by_clean = k.clean & (ahead >= 0 if self.clean == "block" else distance >= 0)
        return torch.where(q.clean, by_clean, by_noisy)

    def _drawn(self, q: Place, k: Place) -> Tensor:
        """Which pairs of positions are seen by chance."""
        doc = torch.zeros_like(q.position) if q.doc is None else q.doc
        return uniform(self.key, doc, q.position, k.position) < self.ahead.to(q.position.device)

    def dense(self, keys: Place | None = None, window: int | None = None) -> Tensor:
        """The attention mask (B, 1, T, S), True where a query (T) may look at a key (S; `keys` or this row's own)."""
        keys = keys or self.place
        return self.visible(self.place.unsqueeze(-1), keys.unsqueeze(-2), window).unsqueeze(1)

    def turned(self, window: int | None = None) -> Tensor:
        """The mask of whole rows the other way round, (B, 1, S, T): whether a key (S) is seen by a query (T). B is 1
        where one row stands for all."""
        place = self.alike.place
        return self.visible(place.unsqueeze(-2), place.unsqueeze(-1), window).unsqueeze(1)

    def neighbour(self, j: int) -> tuple[Tensor, Tensor]:
        """The j-th left neighbour of every position: its index in the row (B, T), and whether there is one (B, T).

        The neighbour of a document's first position does not exist. All kinds share it: the taps of a causal
        convolution look left, whoever attention may look at. In a doubled row the left neighbours of a noisy position
        are noisy within its block and clean before it. A negative j asks for neighbours to the right, which exist as
        far as the position may look: to the end of its document, or of its block.
        """
        index = torch.arange(self.positions.shape[1], device=self.positions.device).expand(self.positions.shape) - j
        if j < 0:
            return self._to_the_right(index, j)
        if self.kind == "doubled":
            leaves = self.block(self.positions - j) < self.block(self.positions)
            index = torch.where(leaves & ~self.place.clean, index + self.positions.shape[1] // 2, index)
        return index.clamp(min=0), self.positions >= j

    def _to_the_right(self, index: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """Neighbours at `index`, which exist where the position looked for stands there and may be seen."""
        found = index.clamp(max=self.positions.shape[1] - 1)
        own = self.place
        other = Place(*(None if part is None else part.gather(1, found) for part in own))
        return found, (other.position == own.position - j) & self.visible(own, other)
