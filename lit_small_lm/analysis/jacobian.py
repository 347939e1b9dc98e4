"""How far a layer's Jacobian is from the identity, estimated with random vectors (Hutchinson, 1989).

J is the derivative of what a layer puts out, at all positions of a row together, by what it is given. With v of
independent signs, E |J'v - v|^2 is the squared Frobenius norm of J - I and E v'J'v the trace of J: two numbers per
vector from one backward pass, where J itself has (T D)^2 entries. *When Does Sparsity Mitigate the Curse of Depth*
(arXiv 2603.15389) averages the derivative of each position by itself over tokens before it takes norms; this one also
has what flows between positions.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_small_lm.analysis.questions import Question
from lit_small_lm.analysis.subject import Measured, Subject, Tell, columns
from lit_small_lm.analysis.surgery import Boundary, boundaries_of, carrying, context_from, stream_in
from lit_small_lm.keys import generator


class Probe(NamedTuple):
    """What random vectors say of one layer, row by row, each times the row's data positions times D."""

    distance: Tensor
    """(B,) squared Frobenius norm of J - I."""
    trace: Tensor
    """(B,) trace of J."""


def jacobians(subject: Subject, probes: int, tell: Tell) -> dict[str, Any]:
    """By layer `distance`, |J - I| / sqrt(n), and `diagonal`, trace(J) / n, for n entries of the stream; with errors
    over rows. The identity has 0 and 1.

    Raises:
        RequestError: the norm scheme carries more than one stream.
    """
    found: list[list[list[Tensor]]] = [[] for _ in range(subject.depth)]
    for number, question in enumerate(subject.questions):
        with torch.no_grad():
            _, boundaries = boundaries_of(subject.net, question.query)
        for index, probe in itertools.product(range(subject.depth), range(probes)):
            key = (subject.seed, "jacobian", number, index, probe)
            once = probed(subject.net.layers[index], boundaries[index], question, key)
            size = question.data.sum(1).double() * subject.net.dims.dim
            found[index].append([value.cpu() for value in (*once, size)])
        tell(number + 1, len(subject.questions.items))
    return _summary(subject, [[torch.cat(part) for part in zip(*layer, strict=True)] for layer in found])


def probed(layer: nn.Module, boundary: Boundary, question: Question, key: tuple[int | str, ...]) -> Probe:
    """One random vector through one layer; padding has no part in it."""
    x = boundary.stream.detach().requires_grad_()
    out = stream_in(layer(carrying(boundary.carry, x), context_from(question.query, boundary)), boundary.shape)
    signs = torch.randint(0, 2, x.shape, generator=generator(*key)).to(x) * 2 - 1
    v = signs * question.data.unsqueeze(-1)
    (pulled,) = torch.autograd.grad(out, x, v)
    pulled = pulled * question.data.unsqueeze(-1)
    return Probe((pulled - v).double().square().sum((1, 2)), (pulled * v).double().sum((1, 2)))


def _summary(subject: Subject, layers: list[list[Tensor]]) -> dict[str, Any]:
    distances, diagonals = [], []
    for squares, traces, size in layers:
        square = subject.mean(squares, size)
        root = max(square.value, 0.0) ** 0.5
        distances.append(Measured(root, square.error / (2 * root) if root else 0.0))
        diagonals.append(subject.mean(traces, size))
    distance, distance_error = columns(distances)
    diagonal, diagonal_error = columns(diagonals)
    return {
        "distance": distance,
        "distance_error": distance_error,
        "diagonal": diagonal,
        "diagonal_error": diagonal_error,
    }
