"""The residual stream from layer to layer: its variance, how far a layer moves it, and the gradient of its weights.

Variance over channels as in *The Curse of Depth* (arXiv 2502.05795). Angular distance d(l, l+n) between the inputs of
layers l and l+n, arccos(cosine) / pi, as in *The Unreasonable Ineffectiveness of the Deeper Layers* (arXiv 2403.17887);
Block Influence, 1 - cosine of a layer's input and output, as in ShortGPT (arXiv 2403.03853). All are raw values;
`rescaled` is the view in which the Curse of Depth shows them, where rows cannot be compared with each other.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.analysis.questions import Question
from lit_small_lm.analysis.subject import Subject, Tell, columns
from lit_small_lm.analysis.surgery import boundaries_of
from lit_small_lm.training.score import weighted_sum


def readings(question: Question, kind: str) -> dict[str, Tensor]:
    """Positions (B, T) that are averaged over, by name; where scored positions stand out (masked ones), both sides."""
    found = {"mean": question.data}
    if kind == "causal":
        return {"last": question.last, **found}
    if not torch.equal(question.asked, question.data):
        found |= {"scored": question.asked, "not scored": question.data & ~question.asked}
    return found


@torch.no_grad()
def profiled(subject: Subject, kind: str, tell: Tell) -> dict[str, Any]:
    """Token means: `variance` of the embedding and after each layer (n_layers + 1), and for each layer `update`, the
    norm of what it adds over that of what it is given, and `influence`; each with its standard error."""
    sums: dict[str, Tensor] = {}
    count = subject.questions.count
    for number, question in enumerate(subject.questions):
        states = _states(subject, question)
        found = {"variance": states.var(dim=-1, unbiased=False)}  # (L+1, B, T)
        moved, before = states.diff(dim=0).norm(dim=-1), states[:-1].norm(dim=-1)
        found["update"] = moved / before
        found["influence"] = 1 - torch.cosine_similarity(states[:-1], states[1:], dim=-1)
        found["tokens"] = torch.ones_like(found["variance"][:1])
        for name, values in found.items():
            rows = torch.stack([question.per_unit(value, question.data, count) for value in values])
            sums[name] = sums.get(name, 0) + rows
        tell(number + 1, len(subject.questions.items))
    result: dict[str, Any] = {}
    tokens = sums.pop("tokens")[0]
    for name, rows in sums.items():
        result[name], result[f"{name}_error"] = columns([subject.mean(row, tokens) for row in rows])
    return result


def gradients(subject: Subject, tell: Tell) -> dict[str, Any]:
    """`norm` by layer: the L2 norm of the gradient of the loss by all of the layer's weights, over all questions."""
    net, total = subject.net, subject.questions.tokens.sum().item()
    net.zero_grad(set_to_none=True)
    for number, question in enumerate(subject.questions):
        query = question.query
        nats = net(query.tokens, query.context(), query.targets, query.scored)
        (weighted_sum(nats, query) / total).backward()
        tell(number + 1, len(subject.questions.items))
    found = [[p.grad.double().square().sum() for p in layer.parameters() if p.grad is not None] for layer in net.layers]
    net.zero_grad(set_to_none=True)
    return {"norm": [math.sqrt(float(sum(squares))) for squares in found]}


@torch.no_grad()
def angular(subject: Subject, kind: str, tell: Tell) -> dict[str, Any]:
    """By reading a symmetric matrix `distance[l][m]` (n_layers + 1 each way), l and m how many layers have run."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    count = subject.questions.count
    for number, question in enumerate(subject.questions):
        distances = angles(_states(subject, question))  # (L+1, L+1, B, T)
        for name, where in readings(question, kind).items():
            pairs = [question.per_unit(values, where, count) for values in distances.flatten(0, 1)]
            top = torch.stack(pairs).unflatten(0, distances.shape[:2])
            bottom = question.per_unit(torch.ones_like(distances[0, 0]), where, count)
            before = sums.get(name, (0, 0))
            sums[name] = (before[0] + top, before[1] + bottom)
        tell(number + 1, len(subject.questions.items))
    return {name: _matrix(subject, top, bottom) for name, (top, bottom) in sums.items()}


def angles(states: Tensor) -> Tensor:
    """(L, B, T, D) states -> (L, L, B, T) angular distance of each pair at each position, in units of pi."""
    unit = torch.nn.functional.normalize(states.double(), dim=-1).permute(1, 2, 0, 3)  # (B, T, L, D)
    cosines = unit @ unit.transpose(-1, -2)  # (B, T, L, L)
    found = (torch.arccos(cosines.clamp(-1, 1)) / math.pi).permute(2, 3, 0, 1)
    found[range(len(states)), range(len(states))] = 0.0  # exactly
    return found


def by_size(distance: Sequence[Sequence[float]]) -> list[list[float]]:
    """`distance[l][m]` -> row n - 1 holds d(l, l+n) for every l from 0: one value less in each row."""
    edges = len(distance)
    return [[distance[start][start + size] for start in range(edges - size)] for size in range(1, edges)]


def rescaled(sizes: Sequence[Sequence[float]]) -> list[list[float]]:
    """Rows of `by_size`, each clipped to its 1st to 99th percentile and stretched to 0 to 1 by itself."""
    found = []
    for row in sizes:
        values = torch.tensor(row, dtype=torch.float64)
        low, high = torch.quantile(values, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
        spread = (high - low) or 1.0
        found.append(((values.clamp(low, high) - low) / spread).tolist())
    return found


def _matrix(subject: Subject, top: Tensor, bottom: Tensor) -> dict[str, Any]:
    pairs = [columns([subject.mean(sums, bottom) for sums in row]) for row in top]
    return {"distance": [values for values, _ in pairs], "distance_error": [errors for _, errors in pairs]}


def _states(subject: Subject, question: Question) -> Tensor:
    """(L+1, B, T, D) the stream at every boundary."""
    _, boundaries = boundaries_of(subject.net, question.query)
    return torch.stack([boundary.stream for boundary in boundaries])
