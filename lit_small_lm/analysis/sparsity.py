"""Magnitude pruning: the smallest weights of every matrix become zero, by `torch.nn.utils.prune`.

Unstructured (Han et al., arXiv 1506.02626), or 2 of every 4 along the inputs (arXiv 2104.08378), the pattern that GPUs
have kernels for. How much each layer gives may grow with depth, or with how little the layer's own pruning costs.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lit_small_lm.analysis.catalogue import Cost
from lit_small_lm.analysis.subject import Subject, Tell, Variant, columns
from lit_small_lm.errors import RequestError
from lit_small_lm.roles import Linear

Pattern = Literal["unstructured", "2:4"]
PATTERNS = ("unstructured", "2:4")
ALLOCATIONS = ("uniform", "increasing", "measured")
SPREAD = 0.25
"""How far the layers' shares lie below and above their mean, where they differ; less where that leaves 0 to 1."""


def sparse(layer: nn.Module, share: float, pattern: Pattern) -> nn.Module:
    """A copy of a layer in which a share of every matrix's weights is zero: the smallest ones."""
    found = copy.deepcopy(layer)
    for module in linears(found):
        if pattern == "2:4":
            prune.custom_from_mask(module, "weight", two_of_four(module.weight))
        else:
            prune.l1_unstructured(module, "weight", amount=round(share * module.weight.numel()))
        prune.remove(module, "weight")
    return found


def linears(layer: nn.Module) -> list[Linear]:
    """The matrices of a layer."""
    return [module for module in layer.modules() if isinstance(module, Linear)]


def two_of_four(weight: Tensor) -> Tensor:
    """(out, in) -> 1 for the larger two of every four neighbours along the inputs, 0 for the others.

    Raises:
        RequestError: the inputs are no multiple of four.
    """
    if weight.shape[-1] % 4:
        raise RequestError(f"--pattern: 2:4 needs inputs in fours; a matrix here has {weight.shape[-1]}")
    fours = weight.detach().abs().unflatten(-1, (-1, 4))  # (out, in / 4, 4)
    return torch.zeros_like(fours).scatter_(-1, fours.topk(2, dim=-1).indices, 1.0).flatten(-2)


def zeros(layers: Sequence[nn.Module]) -> float:
    """The share of zeros in the matrices of some layers."""
    weights = [module.weight for layer in layers for module in linears(layer)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def sizes(layers: Sequence[nn.Module]) -> list[int]:
    """Weights in each layer's matrices."""
    return [sum(module.weight.numel() for module in linears(layer)) for layer in layers]


def shares(mean: float, ranks: Sequence[int], weights: Sequence[int]) -> list[float]:
    """A share for each layer, rising evenly with its rank, whose mean over all weights is `mean`.

    Args:
        mean: share of all weights.
        ranks: place of each layer, from 0, in the order of rising shares; all equal: the same share for each.
        weights: how many each layer has.
    """
    top = max(ranks) or 1
    slopes = [2 * rank / top - 1 if max(ranks) else 0.0 for rank in ranks]
    middle = sum(slope * weight for slope, weight in zip(slopes, weights, strict=True)) / sum(weights)
    centred = [slope - middle for slope in slopes]
    limits = [mean / -slope if slope < 0 else (1 - mean) / slope for slope in centred if slope]
    return [mean + min([SPREAD, *limits]) * slope for slope in centred]


def allocated(allocation: str, mean: float, costs: Sequence[float], weights: Sequence[int]) -> list[float]:
    """A share for each layer: all the same ("uniform"), more the deeper ("increasing"), or more the less it costs alone
    ("measured")."""
    depth = len(weights)
    if allocation == "uniform":
        return shares(mean, [0] * depth, weights)
    if allocation == "increasing":
        return shares(mean, list(range(depth)), weights)
    order = sorted(range(depth), key=lambda index: (-costs[index], index))  # the dearest layer first
    return shares(mean, [order.index(index) for index in range(depth)], weights)


def costs(subject: Subject, levels: Sequence[float], pattern: Pattern, tell: Tell) -> dict[str, Any]:
    """The loss by sparsity and depth: `rise[level][layer]` with that share of one layer's weights at zero."""
    order = tuple(range(subject.depth))
    layers = list(subject.net.layers)
    variants = [
        Variant(order, {index: partial(sparse, layer, level, pattern)})
        for level in levels
        for index, layer in enumerate(layers)
    ]
    nats = subject.nats(variants, tell).unflatten(0, (len(levels), subject.depth))
    found = [columns([subject.rise(row) for row in level]) for level in nats]
    return {
        "levels": list(levels),
        "rise": [rise for rise, _ in found],
        "rise_error": [error for _, error in found],
    }


def cost(depth: int, levels: int) -> Cost:
    """How much of the network `costs` runs."""
    return Cost(levels * depth * (depth + 1) / 2 + depth, levels * depth)


def whole_costs(subject: Subject, plans: Sequence[Sequence[float]], pattern: Pattern) -> dict[str, Any]:
    """`rise` and `rise_error` of the whole network, for plans that say each layer's share."""
    order, layers = tuple(range(subject.depth)), list(subject.net.layers)
    made = [[partial(sparse, *pair, pattern) for pair in zip(layers, plan, strict=True)] for plan in plans]
    variants = [Variant(order, dict(enumerate(plan))) for plan in made]
    rise, error = columns([subject.rise(row) for row in subject.nats(variants)])
    return {"rise": rise, "rise_error": error}


def make_sparse(subject: Subject, plan: Sequence[float], pattern: Pattern) -> None:
    """Put layers with zeros into the place of the network's own."""
    found = [sparse(layer, share, pattern) for layer, share in zip(subject.net.layers, plan, strict=True)]
    subject.net.layers = nn.ModuleList(found)
