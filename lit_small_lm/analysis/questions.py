"""What a network is asked, the same for every variant of it: queries, and whose text each position is.

An objective that draws noise draws it here, once. Every variant then answers the same queries, so that differences
between variants are differences of the networks alone, and their standard errors are those of paired differences.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_small_lm.keys import fold
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.plugin import Batch, Objective, Query

Unit = Literal["documents", "rows"]
FEWEST = 8
"""Documents that standard errors are taken over; where there are fewer, rows stand for them."""


@dataclass(frozen=True)
class Question:
    """One batch as the objective asks it."""

    query: Query
    units: Tensor
    """(B, T) number of the document, or row, of each position; -1 where there is no data."""

    def per_unit(self, values: Tensor, where: Tensor, count: int) -> Tensor:
        """values (B, T) at the positions `where` (B, T) that are data -> sums by unit (count,), float64."""
        chosen = where & (self.units >= 0)
        sums = values.new_zeros(count, dtype=torch.float64)
        return sums.index_add_(0, self.units[chosen], values[chosen].double())

    def sums(self, nats: Tensor, count: int) -> Tensor:
        """nats of the targets, weighted as the objective weighs them -> sums by unit (count,), float64."""
        query = self.query
        weighted = (nats if query.weights is None else nats * query.weights).detach().double().flatten()
        units = self.units.flatten() if query.scored is None else self.units.flatten()[query.scored]
        data = units >= 0
        sums = nats.new_zeros(count, dtype=torch.float64)
        return sums.index_add_(0, units[data], weighted[data])

    @property
    def data(self) -> Tensor:
        """(B, T) booleans: positions that hold data."""
        return self.units >= 0

    @property
    def asked(self) -> Tensor:
        """(B, T) booleans: positions that are scored."""
        query, shape = self.query, self.units.shape
        if query.scored is not None:
            chosen = self.units.new_zeros(self.units.numel(), dtype=torch.bool)
            chosen[query.scored] = True
            return chosen.view(shape) & self.data
        return self.data if query.weights is None else (query.weights > 0) & self.data

    @property
    def last(self) -> Tensor:
        """(B, T) booleans: the last position of each document in each row."""
        beyond = torch.full_like(self.units[:, :1], -1)
        after = torch.cat([self.units[:, 1:], beyond], dim=1)
        documents = self.query.visibility.doc_ids
        turns = after != self.units
        if documents is not None:
            turns |= torch.cat([documents[:, 1:], beyond - 1], dim=1) != documents
        return turns & self.data


@dataclass(frozen=True)
class Questions:
    """All of them."""

    items: Sequence[Question]
    unit: Unit
    tokens: Tensor
    """(units,) data tokens of each unit, times draws; float64."""
    documents: int
    """How many documents there are, wholly or in part."""
    draws: int
    """How often each batch is asked: noise draws of an objective that has noise."""

    def __iter__(self) -> Iterator[Question]:
        return iter(self.items)

    @property
    def count(self) -> int:
        """Units."""
        return len(self.tokens)


def ask(objective: Objective, batches: Iterable[Batch], seed: int, draws: int, device: str = "cpu") -> Questions:
    """Questions about batches.

    Args:
        objective: asks them.
        batches: rows of a split.
        seed: what noise depends on.
        draws: times each batch is asked; an objective without noise is asked once.
        device: where they go.
    """
    held = [batch.to(device) for batch in batches]
    documents = torch.cat([ids[ids >= 0] for ids in map(_counted, held)]).unique()
    unit: Unit = "documents" if len(documents) >= FEWEST else "rows"
    count = len(documents) if unit == "documents" else sum(len(batch.tokens) for batch in held)
    draws = 1 if objective.bound == "exact" else draws
    tokens = torch.zeros(count, dtype=torch.float64, device=device)
    items, rows = [], 0
    for number, batch in enumerate(held):
        name = (lambda ids: torch.searchsorted(documents, ids)) if unit == "documents" else _rows_from(rows)
        rows += len(batch.tokens)
        queries = [question_of(objective, batch, (fold(seed, "analysis", number), draw)) for draw in range(draws)]
        items += [Question(query, _named(_document_ids(query, batch), name)) for query in queries]
        counted = _named(_counted(batch), name)
        tokens += draws * torch.bincount(counted[counted >= 0], minlength=count)
    return Questions(items, unit, tokens, len(documents), draws)


def question_of(objective: Objective, batch: Batch, key: tuple[int, int]) -> Query:
    """What an objective is scored by: the likelihood, or the estimate of its bound, whatever the training loss is."""
    return objective.measured(batch, key).query if isinstance(objective, Denoising) else objective.query(batch, key)


def _counted(batch: Batch) -> Tensor:
    """(B, T) document of each data token that counts, -1 for the others."""
    documents = batch.doc_ids[:, :-1]
    return documents if batch.loss_mask is None else torch.where(batch.loss_mask, documents, -1)


def _document_ids(query: Query, batch: Batch) -> Tensor:
    """(B, T) document of each position of a query, whose rows may be longer than the batch's."""
    documents = query.visibility.doc_ids
    return batch.doc_ids[:, :-1] if documents is None else documents


def _rows_from(first: int) -> Callable[[Tensor], Tensor]:
    return lambda ids: torch.arange(first, first + len(ids), device=ids.device)[:, None].expand_as(ids)


def _named(documents: Tensor, name: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, T) unit of each position, -1 where there is no document."""
    return torch.where(documents >= 0, name(documents.contiguous()), -1)
