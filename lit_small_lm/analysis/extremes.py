"""Outliers by depth, and what noise in one layer's weights costs.

Large weights and activations are what low precision trips over: *Massive Activations in Large Language Models*
(arXiv 2402.17762) compares the largest activation with the median, *LLM.int8()* (arXiv 2208.07339) counts channels
beyond six deviations.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_small_lm.analysis.questions import Question
from lit_small_lm.analysis.subject import Subject, Tell, Variant, columns
from lit_small_lm.analysis.surgery import boundaries_of
from lit_small_lm.keys import generator

BEYOND = 6.0
"""Standard deviations from which on a weight or an activation counts as an outlier."""


def outlying_weights(subject: Subject) -> dict[str, Any]:
    """By layer, over its matrices: `largest` weight over its matrix's deviation, `kurtosis` (3 for a normal
    distribution), and `share` of weights beyond six deviations."""
    found: dict[str, list[float]] = {"largest": [], "kurtosis": [], "share": []}
    for layer in subject.net.layers:
        scaled = [_standard(weight) for _, weight in matrices(layer)]
        all_of_them = torch.cat(scaled) if scaled else torch.zeros(1, dtype=torch.float64)
        found["largest"].append(all_of_them.abs().max().item())
        found["kurtosis"].append(all_of_them.pow(4).mean().item())
        found["share"].append((all_of_them.abs() > BEYOND).double().mean().item())
    return found


@torch.no_grad()
def outlying_activations(subject: Subject, tell: Tell) -> dict[str, Any]:
    """Of the stream before and after each layer (n_layers + 1): `largest` magnitude, `median` of magnitudes, mean over
    tokens of the `kurtosis` over channels, and `share` of entries beyond six deviations of their token's."""
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in range(subject.depth + 1)]
    for number, question in enumerate(subject.questions):
        _, boundaries = boundaries_of(subject.net, question.query)
        for found, boundary in zip(parts, boundaries, strict=True):
            found.append(_activations(boundary.stream, question))
        tell(number + 1, len(subject.questions.items))
    joined = [[torch.cat(values) for values in zip(*found, strict=True)] for found in parts]
    return {
        "largest": [largest.max().item() for largest, *_ in joined],
        "median": [medians.median().item() for _, medians, *_ in joined],
        "kurtosis": [kurtosis.mean().item() for *_, kurtosis, _ in joined],
        "share": [share.mean().item() for *_, share in joined],
    }


def _activations(x: Tensor, question: Question) -> tuple[Tensor, ...]:
    """x (B, T, D) -> for each data token its largest and median magnitude, kurtosis, and share of outliers."""
    tokens = x[question.data].double()  # (P, D)
    scaled = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, unbiased=False, keepdim=True).clamp(min=1e-30)
    size = tokens.abs()
    beyond = (scaled.abs() > BEYOND).double().mean(-1)
    return size.max(-1).values.cpu(), size.median(-1).values.cpu(), scaled.pow(4).mean(-1).cpu(), beyond.cpu()


def matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a layer with two dimensions or more."""
    return ((name, weight) for name, weight in layer.named_parameters() if weight.ndim > 1)


def _standard(weight: Tensor) -> Tensor:
    flat = weight.detach().double().flatten()
    return (flat - flat.mean()) / flat.std(unbiased=False).clamp(min=1e-30)


def noised(subject: Subject, size: float, draws: int, tell: Tell) -> dict[str, Any]:
    """By layer `rise` and `rise_error` with noise in that layer's matrices alone: normal, of `size` times each matrix's
    deviation; the mean over `draws`."""
    order, variants = tuple(range(subject.depth)), []
    for index, layer in enumerate(subject.net.layers):
        for draw in range(draws):
            key = (subject.seed, "noise", index, draw)
            variants.append(Variant(order, {index: partial(with_noise, layer, size, key)}))
    nats = subject.nats(variants, tell).unflatten(0, (subject.depth, draws)).mean(1)
    rise, error = columns([subject.rise(row) for row in nats])
    return {"rise": rise, "rise_error": error}


@torch.no_grad()
def with_noise(layer: nn.Module, size: float, key: tuple[int | str, ...]) -> nn.Module:
    """A copy of a layer whose matrices have noise of `size` times their deviation, a function of `key`."""
    noisy, numbers = copy.deepcopy(layer), generator(*key)
    for _, weight in matrices(noisy):
        noise = torch.randn(weight.shape, generator=numbers).to(weight)
        weight.add_(noise * (size * weight.std(unbiased=False)))
    return noisy
