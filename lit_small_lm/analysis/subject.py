"""A network under examination: what variants of it lose on the same questions, each from where it begins to differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_small_lm.analysis.questions import Question, Questions
from lit_small_lm.analysis.surgery import Boundary, Resume, boundaries_of, context_from, running
from lit_small_lm.backbone import Backbone
from lit_small_lm.training.score import ratio

Tell = Callable[[int, int], None]
"""Told how many of how many pieces of work are done."""


@dataclass(frozen=True)
class Variant:
    """Which layers run, in which order, and what stands in the place of some."""

    order: tuple[int, ...]
    """Indices of the layers that run."""
    instead: Mapping[int, Callable[[], nn.Module]] = field(default_factory=dict)
    """Index -> makes the module(carry, ctx) -> carry that runs in the layer's place; called once for each batch."""

    @property
    def start(self) -> int:
        """How many layers run as in the whole network before the first that does not."""
        same = 0
        while same < len(self.order) and self.order[same] == same and same not in self.instead:
            same += 1
        return same


class Measured(NamedTuple):
    """A number with its standard error over documents (or rows)."""

    value: float
    error: float


class Subject:
    """A network in evaluation mode and what it is asked."""

    def __init__(self, net: Backbone, questions: Questions, seed: int = 0) -> None:
        self.net, self.questions, self.seed = net.eval(), questions, seed
        self.depth = len(net.layers)

    @cached_property
    def full(self) -> Tensor:
        """(units,) nats of the whole network."""
        return self.nats([Variant(tuple(range(self.depth)))])[0]

    @torch.no_grad()
    def nats(self, variants: Sequence[Variant], tell: Tell = lambda done, of: None) -> Tensor:
        """(variants, units) weighted nats of each variant by document."""
        found = torch.zeros(len(variants), self.questions.count, dtype=torch.float64)
        for number, question in enumerate(self.questions):
            _, boundaries = boundaries_of(self.net, question.query)
            for row, variant in enumerate(variants):
                nats = self.answer(question, variant, boundaries)
                found[row] += question.sums(nats, self.questions.count).cpu()
                tell(number * len(variants) + row + 1, len(self.questions.items) * len(variants))
        return found

    def answer(self, question: Question, variant: Variant, boundaries: Sequence[Boundary]) -> Tensor:
        """The nats of a variant, which goes on from where the whole network's pass is the same."""
        query, start = question.query, variant.start
        made = {index: make() for index, make in variant.instead.items()}
        rest = [made.get(index, self.net.layers[index]) for index in variant.order[start:]]
        with running(self.net, [Resume(boundaries[start].carry), *rest]):
            return self.net(query.tokens, context_from(query, boundaries[start]), query.targets, query.scored)

    def loss(self, nats: Tensor) -> Measured:
        """(units,) nats -> nats per token."""
        value, error = ratio(nats, self.questions.tokens.cpu())
        return Measured(value.item(), error.item())

    def rise(self, nats: Tensor) -> Measured:
        """(units,) nats of a variant -> by how much it loses more than the whole network, paired by document."""
        return self.loss(nats - self.full)

    def mean(self, sums: Tensor, counts: Tensor) -> Measured:
        """(units,) sums of a quantity and what they were taken over -> their ratio."""
        value, error = ratio(sums.cpu(), counts.cpu())
        return Measured(value.item(), error.item())


def columns(measured: Sequence[Measured]) -> tuple[list[float], list[float]]:
    """The values, and their standard errors."""
    return [one.value for one in measured], [one.error for one in measured]
