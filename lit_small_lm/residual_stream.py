"""The residual stream in what a norm scheme carries from layer to layer, which is opaque to everybody else.

The stream is the sum of the different tensors (B, T, D) in the carry. A scheme whose carry is one tensor travels by it;
one that holds the same tensor several times (parallel residuals) has that one; one that keeps apart what was written
(attention residuals) has the sum.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Size = tuple[int, int, int]


def streams(carry: Any, shape: Size) -> list[Tensor]:
    """The different tensors (B, T, D) in what travels between layers, those stacked before B or between T and D taken
    apart; scalars and gates are left out."""
    if isinstance(carry, Tensor):
        if carry.shape == shape:
            return [carry]
        if carry.shape[-3:] == shape:
            return list(carry.reshape(-1, *shape))
        stacked = carry.dim() > 3 and (*carry.shape[:2], carry.shape[-1]) == shape
        return list(carry.flatten(2, -2).unbind(2)) if stacked else []
    parts = carry.values() if isinstance(carry, Mapping) else carry if isinstance(carry, (tuple, list)) else ()
    found = [one for part in parts for one in streams(part, shape)]
    return list({id(one): one for one in found}.values())


def stream(carry: Any, shape: Size) -> Tensor | None:
    """The stream (B, T, D) of a carry; None if nothing of this shape is in it."""
    found = streams(carry, shape)
    return sum(found[1:], start=found[0]) if found else None
