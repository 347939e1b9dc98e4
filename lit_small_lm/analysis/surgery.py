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
from lit_small_lm.residual_stream import Size, stream


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
    shape: Size
    """(B, T, D) of the stream."""

    @property
    def stream(self) -> Tensor:
        """The residual stream (B, T, D). Raises RequestError where the norm scheme's carry has none."""
        return stream_in(self.carry, self.shape)


class Note(nn.Module):
    """Leaves the carry as it is and notes it."""

    def __init__(self, boundaries: list[Boundary], dim: int) -> None:
        super().__init__()
        self.boundaries, self.dim = boundaries, dim

    def forward(self, carry: Any, ctx: Context) -> Any:
        self.boundaries.append(Boundary(carry, ctx.trace.copy(), (*ctx.visibility.positions.shape, self.dim)))
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
    between = (module for layer in net.layers[start:] for module in (layer, Note(boundaries, net.dims.dim)))
    return [Note(boundaries, net.dims.dim), *between]


def boundaries_of(net: Backbone, query: Query) -> tuple[Tensor, list[Boundary]]:
    """The nats of a query's targets, and all boundaries: n_layers + 1 of them, the first before any layer."""
    found: list[Boundary] = []
    with running(net, noting(net, found)):
        nats = net(query.tokens, query.context(), query.targets, query.scored)
    return nats, found


def context_from(query: Query, boundary: Boundary) -> Context:
    """The context of a forward pass that goes on from a boundary; it leaves no mark on it."""
    return dataclasses.replace(query.context(), trace=boundary.trace.copy())


def stream_in(carry: Any, shape: Size) -> Tensor:
    """The residual stream (B, T, D) in a carry. Raises RequestError where there is none."""
    found = stream(carry, shape)
    if found is None:
        raise RequestError("what the norm scheme carries from layer to layer holds no stream")
    return found


def carrying(carry: Any, x: Tensor) -> Any:
    """A carry like this one with another stream. Raises RequestError where the scheme keeps more than one tensor."""
    if isinstance(carry, Tensor) and carry.shape == x.shape:
        return x
    if not isinstance(carry, tuple) or any(part is not carry[0] for part in carry):
        raise RequestError("the norm scheme carries several tensors from layer to layer, not one stream")
    return tuple(x for _ in carry)
