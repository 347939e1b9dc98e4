"""Floating-point operations of a network, from the weights it multiplies and the attention it computes.

Two for every weight that is multiplied (a multiplication and an addition), as in PaLM's appendix B (arXiv 2204.02311):
forward 2N + 4LHQT a token, training three times that. The trick: the sizes of attention are not looked up in the
configuration but seen as the network itself calls the kernel, without data, so that any mixer counts itself. By
convention causality is not discounted, recomputation is not credited, and a window of W positions counts min(W, T).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_small_lm.context import Context, Kind, Place, Visibility
from lit_small_lm.planning.counts import Parameters
from lit_small_lm.planning.outline import Outline

BACKWARD = 2
"""Operations of a backward pass for each one of the forward pass: gradients of the inputs, and of the weights."""


@dataclass(frozen=True)
class Flops:
    """Operations for one token of rows of `positions` tokens; multiplications and additions count one each."""

    positions: int
    matmul_per_token: int
    """Of the matrices of the layers and of the head, of those experts that the token goes through."""
    attention_per_token: int
    """Of scores and of the sums over values."""
    convolution_per_token: int
    forward_per_token: int
    training_per_token: int
    """Forward and backward pass, without what activation checkpointing computes twice."""
    palm_per_token: int
    """6N + 12LHQT, for comparison: N without tables that are only looked up, no windows, no convolutions."""


def flops(outline: Outline, counted: Parameters, positions: int, kind: Kind = "causal") -> Flops:
    """Operations of a network on rows of `positions` tokens, one document a row.

    Args:
        outline: the network.
        counted: its parameters.
        positions: T.
        kind: the visibility.

    Raises:
        RequestError: parts of the family that do not go together.
    """
    counts = [group.count for group in outline.groups]
    seen = list(zip(counts, attention(outline, positions, kind), strict=True))
    attended = sum(count * found.windowed for count, found in seen)
    convolved = 2 * counted.by_role.get("convolution", 0)
    forward = 2 * counted.active_matmul + attended + convolved
    looked_up = counted.by_role.get("positions", 0)
    if outline.spec.head == "untied":
        looked_up += counted.by_role["embedding"]
    return Flops(
        positions=positions,
        matmul_per_token=2 * counted.active_matmul,
        attention_per_token=attended,
        convolution_per_token=convolved,
        forward_per_token=forward,
        training_per_token=(1 + BACKWARD) * forward,
        palm_per_token=6 * (counted.active - looked_up) + 3 * sum(count * found.full for count, found in seen),
    )


class _Call(NamedTuple):
    """A call of the attention kernel."""

    per_key: int
    """Operations for one query and one key, over all heads."""
    keys: int
    mask: Tensor | None


@dataclass(frozen=True)
class Attended:
    """Operations of the attention of one layer, for one token."""

    full: int
    windowed: int
    """With no more keys a query than its window has."""


def attention(outline: Outline, positions: int, kind: Kind) -> list[Attended]:
    """What the attention of one layer of each group computes for each of `positions` tokens."""
    net, found = outline.sketch, []
    tokens = torch.zeros(1, positions, dtype=torch.long, device="meta")
    for layer in net.layers:
        watched = Watched.rows(tokens, kind=kind)
        with torch.no_grad(), _Kernels() as kernels:
            layer(net.open(net.embed(tokens)), Context(watched))
        found.append(_summed(kernels.calls, watched.masks))
    return found


def _summed(calls: list[_Call], masks: list[tuple[Tensor, int | None]]) -> Attended:
    full = windowed = 0
    for per_key, keys, mask in calls:
        window = next((window for made, window in masks if made is mask), None)
        full += per_key * keys
        windowed += per_key * min(keys, window or keys)
    return Attended(full, windowed)


@dataclass(frozen=True)
class Watched(Visibility):
    """A Visibility that remembers which window each of its masks was made for."""

    masks: list[tuple[Tensor, int | None]] = dataclasses.field(default_factory=list, compare=False)

    def dense(self, keys: Place | None = None, window: int | None = None) -> Tensor:
        mask = super().dense(keys, window)
        self.masks.append((mask, window))
        return mask


class _Kernels(TorchFunctionMode):
    """Sees every call of the attention kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            mask = rest[0] if rest else kwargs.get("attn_mask")
            self.calls.append(_Call(2 * query.shape[1] * (query.shape[3] + value.shape[3]), key.shape[2], mask))
        return func(*args, **kwargs)
