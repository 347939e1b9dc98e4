"""The logit lens (nostalgebraist, 2020): what the network would say if it ended after each layer.

Final norm and head are put behind every layer. Beside the loss stand the divergence KL(after the layer || at the end),
and how much of the end's five likeliest tokens is there already, as in *Do Language Models Use Their Depth
Efficiently?* (arXiv 2505.13898).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_small_lm.analysis.questions import Question
from lit_small_lm.analysis.subject import Subject, Tell, columns
from lit_small_lm.analysis.surgery import Boundary, Resume, boundaries_of, context_from, running

TOP = 5
LOGITS = 1 << 24
"""Held at once."""


@torch.no_grad()
def lens(subject: Subject, tell: Tell) -> dict[str, Any]:
    """`loss`, `divergence` (nats) and `overlap` (of the five likeliest tokens), n_layers + 1 each, with errors."""
    count, depth = subject.questions.count, subject.depth
    sums = torch.zeros(3, depth + 1, count, dtype=torch.float64)
    scored = torch.zeros(count, dtype=torch.float64)
    for number, question in enumerate(subject.questions):
        _, boundaries = boundaries_of(subject.net, question.query)
        scored += question.per_unit(torch.ones_like(question.units).double(), question.asked, count).cpu()
        for layer, boundary in enumerate(boundaries):
            sums[0, layer] += question.sums(_ended(subject, question, boundary), count).cpu()
        _compare(subject, question, boundaries, sums[1:])
        tell(number + 1, len(subject.questions.items))
    result: dict[str, Any] = {}
    bottoms = (subject.questions.tokens.cpu(), scored, scored)
    for name, rows, bottom in zip(("loss", "divergence", "overlap"), sums, bottoms, strict=True):
        result[name], result[f"{name}_error"] = columns([subject.mean(row, bottom) for row in rows])
    return result


def _compare(subject: Subject, question: Question, boundaries: Sequence[Boundary], sums: Tensor) -> None:
    """Add what `compared` finds to sums (2, L+1, units), as many positions at once as `LOGITS` allows."""
    positions = question.asked.flatten().nonzero().squeeze(1)
    for piece in positions.split(max(1, LOGITS // subject.net.embed.weight.shape[0])):
        units = question.units.flatten()[piece].cpu()
        end = _log_probabilities(subject, question, boundaries[-1], piece)
        for layer, boundary in enumerate(boundaries):
            found = compared(_log_probabilities(subject, question, boundary, piece), end)
            sums[:, layer].index_add_(1, units, torch.stack([value.double().cpu() for value in found]))


def compared(here: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(M, V) log-probabilities after a layer and at the end -> (M,) KL(here || end), (M,) share of likeliest tokens."""
    divergence = F.kl_div(end, here, reduction="none", log_target=True).sum(-1)
    count = min(TOP, end.shape[-1])
    ours, theirs = here.topk(count).indices, end.topk(count).indices  # (M, 5)
    return divergence, (ours.unsqueeze(-1) == theirs.unsqueeze(-2)).sum((-1, -2)) / count


def _ended(subject: Subject, question: Question, boundary: Boundary) -> Tensor:
    """The nats of a network that ends at a boundary."""
    query = question.query
    with running(subject.net, [Resume(boundary.carry)]):
        return subject.net(query.tokens, context_from(query, boundary), query.targets, query.scored)


def _log_probabilities(subject: Subject, question: Question, boundary: Boundary, positions: Tensor) -> Tensor:
    query = question.query
    with running(subject.net, [Resume(boundary.carry)]):
        logits = subject.net(query.tokens, context_from(query, boundary), scored=positions)
    answers = [index for index in range(logits.shape[-1]) if index not in query.impossible]
    logits = logits if not query.impossible else logits[:, answers]
    return logits.log_softmax(-1)  # (M, V), without ids that are no answer
