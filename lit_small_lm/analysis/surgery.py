"""A network that runs other modules in the place of its layers, through its own forward pass and for a while.

Layers own their factors (see `backbone.build_layer`), so that one that stands elsewhere, or stays when others go, does
what it did.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Trace
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Query


@contextlib.contextmanager
def running(net: Backbone, layers: Iterable[nn.Module]) -> Iterator[Backbone]:
    """The network with these modules, each module(carry, ctx) -> carry, in the place of its layers."""
    own = net.layers
    net.layers = nn.ModuleList(layers)
    try:
        yield net
    finally:
        net.layers = own


class Boundary(NamedTuple):
    """Where one layer ends and the next begins."""

    carry: Any
    trace: Trace
    """What has been recorded so far: values that later layers share with earlier ones are in it."""


class Note(nn.Module):
    """Leaves the carry as it is and notes it."""

    def __init__(self, boundaries: list[Boundary]) -> None:
        super().__init__()
        self.boundaries = boundaries

    def forward(self, carry: Any, ctx: Context) -> Any:
        self.boundaries.append(Boundary(carry, ctx.trace.copy()))
        return carry


class Resume(nn.Module):
    """Goes on from a carry, whatever it is given."""

    def __init__(self, carry: Any) -> None:
        super().__init__()
        self.carry = carry

    def forward(self, carry: Any, ctx: Context) -> Any:
        return self.carry


def noting(net: Backbone, boundaries: list[Boundary], start: int = 0) -> list[nn.Module]:
    """The layers from `start` on with a `Note` before, between and after them: one boundary more than layers."""
    between = (module for layer in net.layers[start:] for module in (layer, Note(boundaries)))
    return [Note(boundaries), *between]


def boundaries_of(net: Backbone, query: Query) -> tuple[Tensor, list[Boundary]]:
    """The nats of a query's targets, and all boundaries: n_layers + 1 of them, the first before any layer."""
    found: list[Boundary] = []
    with running(net, noting(net, found)):
        nats = net(query.tokens, query.context(), query.targets, query.scored)
    return nats, found


def context_from(query: Query, boundary: Boundary) -> Context:
    """The context of a forward pass that goes on from a boundary; it leaves no mark on it."""
    return dataclasses.replace(query.context(), trace=boundary.trace.copy())


def stream(carry: Any) -> Tensor:
    """The residual stream (B, T, D) in a carry.

    A scheme whose carry is one tensor travels by it. One whose carry holds the same tensor several times (parallel
    residuals) has that one; one that keeps what was written apart (attention residuals) has the sum.
    """
    if isinstance(carry, Tensor):
        return carry
    return carry[0] if _one(carry) else sum(carry[1:], start=carry[0])


def carrying(carry: Any, x: Tensor) -> Any:
    """A carry like this one with another stream. Raises RequestError where the scheme keeps more than one tensor."""
    if isinstance(carry, Tensor):
        return x
    if not _one(carry):
        raise RequestError("the norm scheme carries several tensors from layer to layer, not one stream")
    return tuple(x for _ in carry)


def _one(carry: Any) -> bool:
    return all(part is carry[0] for part in carry)
