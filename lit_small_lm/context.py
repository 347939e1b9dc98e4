"""What a forward pass carries along.

`Visibility` (its own module, handed on here) says who may look at whom. `Cache` is decoding memory, `Trace` the record
of one forward pass, `Context` the three together, as every part of the network receives them.

Shape legend of the whole package: B batch, T time (positions of this call), S keys (cached and new), D dim, H heads,
G key/value heads, K head dim, F hidden, V vocabulary, N kernel.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lit_small_lm import pages
from lit_small_lm.errors import RequestError
from lit_small_lm.flex import BlockMask, block_mask
from lit_small_lm.visibility import Kind, Place, Visibility  # noqa: F401

R = TypeVar("R")


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
        self._shared: dict[Hashable, Any] = {}

    @property
    def written(self) -> bool:
        """Whether all that it hands out has been written; else what has not stands behind every position."""
        return True

    def keys_values(self, address: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (B, G, T, K) of the attention at `address`; returns all of them, (B, G, S, K).

        In memory the positions of a head lie side by side, or the heads of a position where `by_position` says so.
        """
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

    def once(self, key: Hashable, make: Callable[[], R]) -> R:
        """The value under `key`, made at the first call: what every pass needs and none changes."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def advance(self, count: int) -> None:
        """Count the positions that the finished forward pass has written."""
        self.length += count

    def peek(self) -> "Cache":
        """A cache for one forward pass that sees what is held here and leaves no trace of its own: a block of text may
        be looked at many times before it is written."""
        return _Peek(self)

    def fixed(self, device: torch.device) -> "Cache":
        """The same memory for passes of unchanging shape, as CUDA graphs and compiled networks need them, of kind
        "causal"; this one is not to be used any more. It has to have a capacity, and is then written without looking.
        """
        return _Fixed(self, device)

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (B,), indices into the batch, in their order: what a beam search goes on with."""
        self._buffers = {address: buffer[rows] for address, buffer in self._buffers.items()}

    def _append(self, address: Hashable, value: Tensor, dim: int) -> Tensor:
        count = value.shape[dim]
        end = self.length + count
        if self.capacity is not None and end > self.capacity:
            raise RequestError(f"cache: {end} positions asked for; it was made for {self.capacity}")
        buffer = self._buffers.get(address)
        if buffer is None or buffer.shape[dim] < end:
            longer = _room(value, dim, self.capacity or 2 * end)
            if buffer is not None:
                longer.narrow(dim, 0, self.length).copy_(buffer.narrow(dim, 0, self.length))
            buffer = self._buffers[address] = longer
        buffer.narrow(dim, self.length, count).copy_(value)
        return buffer.narrow(dim, 0, end)


LEAST_HEADS, MOST_BYTES = 64, 1 << 22
"""Heads of a batch from which on, and bytes of their keys (or values) up to which, positions side by side were faster:
with longer texts they were slower, and with fewer heads even."""


def by_position(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether keys or values (B, G, S, K) on a CPU are read faster position by position: many heads with few of them
    each. Those of a head are read through before the processor has begun to fetch them ahead (80 keys of 32 channels
    for each of 128 heads, AMD EPYC: 0.48 ms by head, 0.34 by position)."""
    heads, size = math.prod(shape[:2]), math.prod(shape) * dtype.itemsize
    return len(shape) == 4 and dtype.itemsize >= 4 and heads >= LEAST_HEADS and size <= MOST_BYTES


def _room(value: Tensor, dim: int, length: int) -> Tensor:
    """Zeros of a value's type and device, so long in one dimension."""
    shape = [*value.shape[:dim], length, *value.shape[dim + 1 :]]
    if not value.is_cpu or type(value) is not Tensor or torch.compiler.is_compiling():
        return value.new_zeros(shape)
    if not by_position(shape, value.dtype):
        return pages.zeros(shape, value.dtype)
    rows, heads, length, width = shape
    return pages.zeros([rows, length, heads, width], value.dtype).transpose(1, 2)


class _Peek(Cache):
    """Shares the buffers of another cache; what it writes lies behind their length, and is written over."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.capacity)
        self.length, self._buffers, self._shared = cache.length, cache._buffers, cache._shared

    def left(self, address: Hashable, h: Tensor, count: int) -> Tensor:
        past = self._buffers.get(address)
        return torch.cat([h.new_zeros(h.shape[0], count, h.shape[2]) if past is None else past, h], dim=1)


BEHIND = 1 << 40
"""A position behind all others."""


class _Fixed(Cache):
    """Goes on in the buffers of another cache, which it hands out whole. The length lives where they do, so that no
    shape and no number that the host knows changes from one pass to the next; it is never asked for."""

    def __init__(self, cache: Cache, device: torch.device) -> None:
        super().__init__(cache.capacity)
        self._buffers, self._shared = cache._buffers, cache._shared
        self._end = torch.full((1,), cache.length, device=device)
        if "position" in self._buffers:
            self._buffers["position"][:, cache.length :] = BEHIND

    @property
    def written(self) -> bool:
        return False

    def advance(self, count: int) -> None:
        self._end += count

    def _append(self, address: Hashable, value: Tensor, dim: int) -> Tensor:
        place = self._end + torch.arange(value.shape[dim], device=value.device)
        return self._buffers[address].index_copy_(dim, place, value)


class Summing(NamedTuple):
    """Asks a network for the sum of the nats of all targets, the one figure that gradients are then taken of."""

    weights: Tensor | None = None
    """What each target's nats are multiplied with, of the targets' shape; None: all one."""

    def of(self, nll: Tensor) -> Tensor:
        """The sum () of these nats."""
        return (nll if self.weights is None else nll * self.weights).sum()


class Trace:
    """The record of one forward pass: auxiliary losses, metrics, and values shared between layers.

    Everything is keyed, so that a recomputed layer (activation checkpointing) never counts twice.
    """

    def __init__(self) -> None:
        self.nats: Tensor | None = None
        """The weighted sum of the nats of all targets, where the context asks for it."""
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
            vars(twin)[name] = dict(record) if isinstance(record, dict) else record
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
    attention: Literal["fastest", "dense"] = "fastest"
    """"dense": by one call of PyTorch's own attention with the whole mask, as who counts or watches its calls needs."""
    impossible: tuple[int, ...] = ()
    """Ids that no target is: they are left out of the softmax of the loss."""
    summing: Summing | None = None
    """The sum of nats to leave in the trace; the nats that are returned then have no gradient. None: no sum, and each
    target's nats have theirs."""

    def keys(self) -> Place:
        """The places of all keys of this call, cached ones included."""
        return self.trace.once("keys", self._keys)

    def _keys(self) -> Place:
        place = self.visibility.place
        return place if self.cache is None else self.cache.places(place)

    def mask(self, window: int | None = None) -> Tensor | None:
        """The attention mask (B, 1, T, S) of this call, cached keys included, made once for all layers.

        None where the kind of visibility says it all: whole rows of one document, without window, and of what a cache
        holds of them the beginning or the newest position.
        """
        keys = self.keys()  # the cache learns of every call's places, also where none is asked for
        if window is None and self.visibility.whole and self._square():
            return None
        return self.trace.once(("mask", window), lambda: self.visibility.dense(keys, window))

    def seen(self, window: int | None = None) -> Tensor | None:
        """What `Visibility.turned` says of whole rows, made once for all layers; None where the kind of visibility
        says it all."""
        if window is None and self.visibility.whole:
            return None
        return self.trace.once(("seen", window), lambda: self.visibility.turned(window))

    def _square(self) -> bool:
        """Whether there is a query for each key, or one for all."""
        if self.cache is None:
            return True
        return self.cache.written and (self.cache.length == 0 or self.visibility.positions.shape[1] == 1)

    def block_mask(self, window: int | None = None) -> BlockMask:
        """The same for FlexAttention, of whole rows without a cache."""
        return self.trace.once(("block mask", window), lambda: block_mask(self.visibility, window))


class Branch:
    """One branch of a layer as norm schemes see it: the normed input h (B, T, D) -> its output (B, T, D)."""

    def __init__(self, run: Callable[[Tensor], Tensor], ctx: Context) -> None:
        self.run, self.ctx = run, ctx

    def __call__(self, h: Tensor) -> Tensor:
        return self.run(h)
