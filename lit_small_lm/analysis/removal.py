"""What is lost without a layer, and with two of them in each other's place.

Removal without healing as in *The Curse of Depth* (arXiv 2502.05795); greedy removal takes the layer next whose loss is
least missed. Swaps of all pairs give the permutation score of *When Does Sparsity Mitigate the Curse of Depth*
(arXiv 2603.15389), which swaps weights alone; here a layer takes its factor along.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch

from lit_small_lm.analysis.subject import Subject, Tell, Variant, columns

Order = tuple[int, ...]


def removed(subject: Subject, tell: Tell) -> dict[str, Any]:
    """Each layer alone: `loss`, `rise` over the whole network and `rise_error`, by layer."""
    orders = [without(tuple(range(subject.depth)), index) for index in range(subject.depth)]
    nats = subject.nats([Variant(order) for order in orders], tell)
    rise, error = columns([subject.rise(row) for row in nats])
    return {"loss": [subject.loss(row).value for row in nats], "rise": rise, "rise_error": error}


def greedily_removed(subject: Subject, count: int, tell: Tell) -> dict[str, Any]:
    """One layer after another, `count` of them: `layers` in the order they went, and `rise` after each."""
    kept, gone, rises = tuple(range(subject.depth)), [], []
    total, done = greedy_passes(subject.depth, count), 0
    for _ in range(count):
        orders = [without(kept, index) for index in kept]
        first = done
        nats = subject.nats(
            [Variant(order) for order in orders],
            lambda part, of, n=len(kept), at=first: tell(at + part * n // of, total),
        )
        done += len(kept)
        best = int(torch.nan_to_num(nats.sum(1), nan=torch.inf).argmin())
        gone.append(kept[best])
        kept = orders[best]
        rises.append(subject.rise(nats[best]))
    rise, error = columns(rises)
    return {"layers": gone, "rise": rise, "rise_error": error}


def greedy_passes(depth: int, count: int) -> int:
    """Networks that `greedily_removed` tries."""
    return sum(depth - step for step in range(count))


def swapped(subject: Subject, tell: Tell) -> dict[str, Any]:
    """Every pair of layers in each other's place: matrices `rise` and `rise_error`, layer by layer, symmetric.

    `permutation` is the mean over pairs of |rise| / loss of the whole network.
    """
    pairs = list(combinations(range(subject.depth), 2))
    nats = subject.nats([Variant(order) for order in _swaps(subject.depth)], tell)
    rise, error = ([[0.0] * subject.depth for _ in range(subject.depth)] for _ in range(2))
    for (a, b), row in zip(pairs, nats, strict=True):
        found = subject.rise(row)
        rise[a][b] = rise[b][a] = found.value
        error[a][b] = error[b][a] = found.error
    loss = subject.loss(subject.full).value
    scores = [abs(rise[a][b]) / loss for a, b in pairs]
    return {"rise": rise, "rise_error": error, "permutation": sum(scores) / len(scores) if scores else None}


def without(order: Order, index: int) -> Order:
    """The order with one layer less."""
    return tuple(layer for layer in order if layer != index)


def _swaps(depth: int) -> Iterator[Order]:
    for a, b in combinations(range(depth), 2):
        order = list(range(depth))
        order[a], order[b] = b, a
        yield tuple(order)
