"""How much a layer matters to later ones, and whether anything but an affine map is left of it.

The causal score and the usefulness of *When Does Sparsity Mitigate the Curse of Depth* (arXiv 2603.15389). Causal: by
how much, relative to its size, a later layer's update changes when an earlier layer is skipped. Usefulness: whether the
loss rises by more than a tenth when the layer's best affine map, fitted on the same positions, stands in its place.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_small_lm.analysis.questions import Question
from lit_small_lm.analysis.subject import Subject, Tell, Variant, columns
from lit_small_lm.analysis.surgery import (
    Boundary,
    Resume,
    boundaries_of,
    carrying,
    context_from,
    noting,
    running,
    stream_in,
)
from lit_small_lm.context import Context
from lit_small_lm.errors import RequestError

USEFUL = 0.1
"""Share of the loss by which it has to rise for a layer to count as useful."""
ENOUGH = 4
"""Positions for each row of an affine map, the fewest that it is fitted on."""


@torch.no_grad()
def caused(subject: Subject, tell: Tell) -> dict[str, Any]:
    """`score[s][l]`: mean norm of the change of layer l's update without layer s, over the update's; 0 for l <= s.

    Beside it `score_error`, and `mean` over all pairs s < l (None for a single layer).
    """
    depth, count = subject.depth, subject.questions.count
    top, bottom = torch.zeros(depth, depth, count, dtype=torch.float64), torch.zeros(depth, count, dtype=torch.float64)
    for number, question in enumerate(subject.questions):
        _, boundaries = boundaries_of(subject.net, question.query)
        updates = _updates(boundaries)
        bottom += _sums(question, updates.norm(dim=-1), count)
        for skipped in range(depth - 1):
            changed = _updates(_skipping(subject, question, skipped, boundaries)) - updates[skipped + 1 :]
            top[skipped, skipped + 1 :] += _sums(question, changed.norm(dim=-1), count)
        tell(number + 1, len(subject.questions.items))
    found = [[subject.mean(top[s, layer], bottom[layer]) for layer in range(depth)] for s in range(depth)]
    rows = [columns(row) for row in found]
    later = [rows[s][0][layer] for s in range(depth) for layer in range(s + 1, depth)]
    score, error = ([_upper(row[part], s) for s, row in enumerate(rows)] for part in (0, 1))
    return {"score": score, "score_error": error, "mean": sum(later) / len(later) if later else None}


def _upper(values: list[float], start: int) -> list[float]:
    return [value if layer > start else 0.0 for layer, value in enumerate(values)]


def _skipping(subject: Subject, question: Question, layer: int, boundaries: list[Boundary]) -> list[Boundary]:
    """The boundaries after a layer that was skipped."""
    found: list[Boundary] = []
    query, before = question.query, boundaries[layer]
    with running(subject.net, [Resume(before.carry), *noting(subject.net, found, layer + 1)]):
        subject.net(query.tokens, context_from(query, before), query.targets, query.scored)
    return found


def _updates(boundaries: list[Boundary]) -> Tensor:
    return torch.stack([boundary.stream for boundary in boundaries]).diff(dim=0)  # (layers, B, T, D)


def _sums(question: Question, values: Tensor, count: int) -> Tensor:
    return torch.stack([question.per_unit(value, question.data, count) for value in values]).cpu()


class Affine(nn.Module):
    """carry -> the same with an affine map of its stream: x (B, T, D) -> x @ weight + shift."""

    def __init__(self, weight: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight, self.shift = weight, shift

    def forward(self, carry: Any, ctx: Context) -> Any:
        x = stream_in(carry, (*ctx.visibility.positions.shape, len(self.weight)))
        return carrying(carry, x @ self.weight.to(x) + self.shift.to(x))


@torch.no_grad()
def useful(subject: Subject, tell: Tell) -> dict[str, Any]:
    """By layer `rise` and `rise_error` with its affine map in its place; `share` of layers beyond the `threshold`.

    `unexplained` is the share of the variance of what the layer puts out that the map leaves.

    Raises:
        RequestError: the norm scheme carries more than one stream, or there is too little text for the maps.
    """
    positions, unknowns = sum(int(question.data.sum()) for question in subject.questions), subject.net.dims.dim + 1
    if positions < ENOUGH * unknowns:
        raise RequestError(f"{positions} positions are too few to fit maps of {unknowns} rows; {ENOUGH} times that do")
    maps = fitted(subject)
    tell(1, 2)
    order = tuple(range(subject.depth))
    made = [partial(Affine, weight, shift) for weight, shift, _ in maps]
    nats = subject.nats([Variant(order, {index: make}) for index, make in enumerate(made)])
    rise, error = columns([subject.rise(row) for row in nats])
    loss = subject.loss(subject.full).value
    count = sum(not one <= USEFUL * loss for one in rise)
    unexplained = [left for _, _, left in maps]
    shares = {"unexplained": unexplained, "share": count / subject.depth}
    return {"rise": rise, "rise_error": error, "threshold": USEFUL * loss, **shares}


@torch.no_grad()
def fitted(subject: Subject) -> list[tuple[Tensor, Tensor, float]]:
    """The least-squares affine map (D, D), (D,) of each layer's output on its input, and the share it leaves."""
    dim, depth = subject.net.dims.dim, subject.depth
    device = subject.net.embed.weight.device
    inner = torch.zeros(depth + 1, dim + 1, dim + 1, dtype=torch.float64, device=device)
    cross = torch.zeros(depth, dim + 1, dim, dtype=torch.float64, device=device)
    squares = torch.zeros(depth, dtype=torch.float64, device=device)
    for question in subject.questions:
        _, boundaries = boundaries_of(subject.net, question.query)
        carrying(boundaries[0].carry, boundaries[0].stream)
        states = [_with_one(boundary.stream[question.data].double()) for boundary in boundaries]  # (P, D+1)
        for layer, (before, after) in enumerate(zip(states, states[1:], strict=False)):
            inner[layer] += before.T @ before
            cross[layer] += before.T @ after[:, :dim]
            squares[layer] += after[:, :dim].square().sum()
    if not torch.isfinite(inner[:depth]).all():
        raise RequestError("the stream is not finite everywhere; no map can be fitted")
    inner[depth] = 0
    return [_solved(inner[layer], cross[layer], squares[layer]) for layer in range(depth)]


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def _solved(inner: Tensor, cross: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, float]:
    """From X'X (D+1, D+1), X'Y (D+1, D) and the sum of Y squared; where X'X is singular the smallest solution."""
    both = torch.linalg.pinv(inner, hermitian=True) @ cross
    mean = cross[-1] / inner[-1, -1]
    left = squares - (both * cross).sum()
    spread = squares - inner[-1, -1] * mean.square().sum()
    return both[:-1], both[-1], max(0.0, (left / spread).item())
