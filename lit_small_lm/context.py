"""Who may look at whom, and what a forward pass carries along.

`Visibility` is the only place that knows which positions see which; attention masks and convolution taps both come
from it, so that a convolution can never see what attention may not. `Cache` is decoding memory, `Trace` the record
of one forward pass, `Context` the three together, as every part of the network receives them.

Shape legend of the whole package: B batch, T time (positions of this call), S keys (cached and new), D dim, H heads,
G key/value heads, K head dim, F hidden, V vocabulary, N kernel.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lit_small_lm.errors import RequestError

Kind = Literal["causal", "bidirectional"]
R = TypeVar("R")


class Place(NamedTuple):
    """Where positions stand: their index within their document, and which document (None: one document a row)."""

    position: Tensor
    doc: Tensor | None

    def unsqueeze(self, dim: int) -> "Place":
        return Place(self.position.unsqueeze(dim), None if self.doc is None else self.doc.unsqueeze(dim))


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Who may look at whom in rows of packed documents; documents never see each other."""

    positions: Tensor
    """(B, T) index of each position within its document, from 0."""
    doc_ids: Tensor | None = None
    """(B, T) document of each position, an id of its own for every document of a row; None: every row is one document
    (the fast paths need no mask)."""
    kind: Kind = "causal"
    """"causal": a position sees itself and what came before; "bidirectional": its whole document."""

    @classmethod
    def rows(cls, tokens: Tensor, doc_ids: Tensor | None = None, kind: Kind = "causal", start: int = 0) -> "Visibility":
        """Visibility of whole rows `tokens` (B, T): positions count from `start`, from 0 again in each document."""
        index = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand(tokens.shape)  # (B, T)
        if doc_ids is None:
            return cls(index, None, kind)
        opens = torch.zeros_like(doc_ids, dtype=torch.bool)
        opens[:, 1:] = doc_ids[:, 1:] != doc_ids[:, :-1]
        return cls(index - torch.where(opens, index, 0).cummax(1).values, doc_ids, kind)

    @property
    def place(self) -> Place:
        return Place(self.positions, self.doc_ids)

    @property
    def contiguous(self) -> bool:
        """Whether left neighbours lie side by side in the row, so that a convolution may shift instead of gather."""
        return self.kind in ("causal", "bidirectional")

    def visible(self, q: Place, k: Place, window: int | None = None) -> Tensor:
        """Whether query places see key places (broadcast); `window` counts the visible keys, the query included."""
        distance = q.position - k.position
        seen = distance >= 0 if self.kind == "causal" else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            seen = seen & (distance.abs() < window)
        return seen if q.doc is None or k.doc is None else seen & (q.doc == k.doc)

    def dense(self, keys: Place | None = None, window: int | None = None) -> Tensor:
        """The attention mask (B, 1, T, S), True where a query (T) may look at a key (S; `keys` or this row's own)."""
        keys = keys or self.place
        return self.visible(self.place.unsqueeze(-1), keys.unsqueeze(-2), window).unsqueeze(1)

    def neighbour(self, j: int) -> tuple[Tensor, Tensor]:
        """The j-th left neighbour of every position: its index in the row (B, T), and whether there is one (B, T).

        The neighbour of a document's first position does not exist. Both kinds share it: the taps of a causal
        convolution look left, whoever attention may look at.
        """
        index = torch.arange(self.positions.shape[1], device=self.positions.device).expand(self.positions.shape) - j
        return index.clamp(min=0), self.positions >= j


class Cache:
    """Decoding memory: keys, values and the last inputs of every convolution, written in place.

    Buffers are allocated once, at the first write, for `capacity` positions; without one they grow as they have to.

    Raises:
        RequestError: more positions are written than `capacity`.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.length = 0
        """Positions held by every buffer; `advance` moves it once per forward pass."""
        self._buffers: dict[Hashable, Tensor] = {}

    def keys_values(self, address: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (B, G, T, K) of the attention at `address`; returns all of them, (B, G, S, K)."""
        return self._append(("k", address), k, 2), self._append(("v", address), v, 2)

    def places(self, place: Place) -> Place:
        """Append the places (B, T) of this call; returns all of them, (B, S)."""
        position = self._append("position", place.position, 1)
        return Place(position, None if place.doc is None else self._append("doc", place.doc, 1))

    def left(self, address: Hashable, h: Tensor, count: int) -> Tensor:
        """h (B, T, C) with the last `count` inputs of earlier calls before it (zeros at first): (B, count+T, C)."""
        past = self._buffers.get(address)
        if past is None:
            past = self._buffers[address] = h.new_zeros(h.shape[0], count, h.shape[2])
        joined = torch.cat([past, h], dim=1)
        past.copy_(joined[:, joined.shape[1] - count :])
        return joined

    def advance(self, count: int) -> None:
        """Count the positions that the finished forward pass has written."""
        self.length += count

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (B,), indices into the batch, in their order: what a beam search goes on with."""
        self._buffers = {address: buffer[rows] for address, buffer in self._buffers.items()}

    def _append(self, address: Hashable, value: Tensor, dim: int) -> Tensor:
        end = self.length + value.shape[dim]
        if self.capacity is not None and end > self.capacity:
            raise RequestError(f"cache: {end} positions asked for; it was made for {self.capacity}")
        buffer = self._buffers.get(address)
        if buffer is None or buffer.shape[dim] < end:
            longer = value.new_zeros([*value.shape[:dim], self.capacity or 2 * end, *value.shape[dim + 1 :]])
            if buffer is not None:
                longer.narrow(dim, 0, self.length).copy_(buffer.narrow(dim, 0, self.length))
            buffer = self._buffers[address] = longer
        buffer.narrow(dim, self.length, value.shape[dim]).copy_(value)
        return buffer.narrow(dim, 0, end)


class Trace:
    """The record of one forward pass: auxiliary losses, metrics, and values shared between layers.

    Everything is keyed, so that a recomputed layer (activation checkpointing) never counts twice.
    """

    def __init__(self) -> None:
        self.losses: dict[Hashable, Tensor] = {}
        """Scalars to add to the training loss, by (name, layer)."""
        self.token_losses: dict[Hashable, Tensor] = {}
        """Terms beside the negative log-likelihood of each target, of its shape and weighted like it, by name."""
        self.metrics: dict[Hashable, Tensor] = {}
        """Scalars to log, by (name, layer)."""
        self.tallies: dict[Hashable, Tensor] = {}
        """What `Stepped` modules are told after the optimizer step, by address; summed over batches and processes."""
        self._shared: dict[Hashable, Any] = {}

    def copy(self) -> "Trace":
        """What is recorded so far; a layer that is run again for its gradient starts from it and leaves no mark."""
        twin = Trace()
        for name, record in vars(self).items():
            vars(twin)[name] = dict(record)
        return twin

    def once(self, key: Hashable, make: Callable[[], R]) -> R:
        """The value under `key`, made at the first call: a mask or rotary table that many layers use."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


@dataclasses.dataclass(frozen=True)
class Context:
    """What every part of the network receives beside its input."""

    visibility: Visibility
    """Who may look at whom."""
    cache: Cache | None = None
    """Decoding memory; None while training and scoring."""
    trace: Trace = dataclasses.field(default_factory=Trace)
    """The record of this forward pass."""
    step: Tensor | None = None
    """Optimizer steps taken so far, a 0-d tensor; None outside training."""

    def keys(self) -> Place:
        """The places of all keys of this call, cached ones included."""
        place = self.visibility.place
        return place if self.cache is None else self.trace.once("keys", lambda: self.cache.places(place))

    def mask(self, window: int | None = None) -> Tensor | None:
        """The attention mask (B, 1, T, S) of this call, cached keys included, made once for all layers.

        None where the kind of visibility says it all: whole rows of one document, without cache and window.
        """
        if self.cache is None and self.visibility.doc_ids is None and window is None:
            return None
        return self.trace.once(("mask", window), lambda: self.visibility.dense(self.keys(), window))


class Branch:
    """One branch of a layer as norm schemes see it: the normed input h (B, T, D) -> its output (B, T, D)."""

    def __init__(self, run: Callable[[Tensor], Tensor], ctx: Context) -> None:
        self.run, self.ctx = run, ctx

    def __call__(self, h: Tensor) -> Tensor:
        return self.run(h)
