"""What of a batch is masked, and how much each masked token weighs: the estimators of the masked-diffusion bound.

The bound of a unit of L tokens (a document, or a block of one) is the expectation over how many and which of them are
masked: with k uniform in 1..L and k of them masked at random, L/k times their summed nats; with a mask rate m, 1/m
times them. The trick: every draw is a function of (seed, step, slot of the row, unit, position), so that it is the same
for any number of workers, processes, accumulated batches and after a resume; and times are stratified over slots and
over the units of a row in an order drawn anew at each step, so that no position has a time of its own.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_small_lm.context import Visibility
from lit_small_lm.keys import fold, stratified, uniform
from lit_small_lm.plugin import Batch, Noise

Estimator = Literal["stratified", "independent", "count", "complementary"]


@dataclass(frozen=True)
class Texts:
    """Rows of documents as a diffusion model sees them: each begins with a token that is given, and ends with its last
    target. W is a row's positions and one more for each of its documents, and those that fill documents up."""

    tokens: Tensor
    """(B, W) clean ids."""
    visibility: Visibility
    """Of the rows; its documents are those of the batch, -1 for padding."""
    open: Tensor
    """(B, W) tokens that may be masked: the same as the targets of next-token prediction, and ends that fill documents
    up. Never padding, a prompt or the first token of a document."""
    slots: Tensor
    """(B,) of the batch."""
    ends: Tensor | None = None
    """(B, W) the column that what a token costs is put down to: its own, and for ends that fill a document up that of
    its end; None: nothing is filled up."""

    @property
    def counted(self) -> Tensor:
        """(B, W) tokens that may be masked and are of the text itself."""
        if self.ends is None:
            return self.open
        return self.open & (self.ends == torch.arange(self.ends.shape[1], device=self.ends.device))


def lay_out(batch: Batch, multiple: int | None = None) -> Texts:
    """The rows of a batch with every piece of a document complete.

    In a packed row the end of one document is the beginning of the next; here each has its own. With `multiple`, more
    ends stand behind the end of each document that ends in its row, up to a multiple of so many positions; they may be
    masked if the end may.
    """
    docs = batch.doc_ids[:, :-1]
    valid, before = docs >= 0, torch.nn.functional.pad(docs, (1, 0), value=-1)[:, :-1]  # (B, T)
    opens = valid & (docs != before)
    column = valid.cumsum(1) - 1 + opens.cumsum(1)  # (B, T) where each target goes
    more = _filling(batch, valid, opens, multiple)  # (B, T) ends behind it
    column = column + more.cumsum(1) - more
    width = int((column + more).max()) + 1 if valid.any() else 1
    tokens, docs_laid = docs.new_full((len(docs), width), batch.specials.filler), docs.new_full((len(docs), width), -1)
    may = torch.zeros_like(tokens, dtype=torch.bool)
    row = torch.arange(len(docs), device=docs.device).unsqueeze(1).expand(docs.shape)
    target, first = (row[valid], column[valid]), (row[opens], column[opens] - 1)
    tokens[target], docs_laid[target] = batch.tokens[:, 1:][valid], docs[valid]
    tokens[first], docs_laid[first] = _begun(batch)[opens], docs[opens]
    may[target] = True if batch.loss_mask is None else batch.loss_mask[valid].bool()
    ends = None if multiple is None else _fill_up(tokens, docs_laid, may, column, more)
    return Texts(tokens, Visibility.rows(tokens, docs_laid, "bidirectional"), may, batch.slots, ends)


def _filling(batch: Batch, valid: Tensor, opens: Tensor, multiple: int | None) -> Tensor:
    """(B, T) how many more ends stand behind each target: some behind a document's end, behind others none."""
    if multiple is None:
        return torch.zeros_like(valid, dtype=torch.long)
    index = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    size = index - torch.where(opens, index, 0).cummax(1).values + 2  # of the document up to the target
    is_end = valid & (batch.tokens[:, 1:] == batch.specials.end)
    return torch.where(is_end, -size % multiple, 0)


def _fill_up(tokens: Tensor, docs: Tensor, may: Tensor, column: Tensor, more: Tensor) -> Tensor:
    """Write `more` (B, T) ends behind the targets at `column` (B, T); returns `Texts.ends`."""
    ends = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)  # (B, W)
    for ahead in range(1, int(more.max()) + 1):
        row, place = (more >= ahead).nonzero(as_tuple=True)
        at = column[row, place]
        for part in (tokens, docs, may, ends):
            part[row, at + ahead] = part[row, at]
    return ends


def _begun(batch: Batch) -> Tensor:
    """The inputs (B, T) of next-token prediction, where documents may begin with a token of their own."""
    tokens, specials = batch.tokens[:, :-1], batch.specials
    return tokens if specials.begin is None else torch.where(tokens == specials.end, specials.begin, tokens)


class Masks(NamedTuple):
    """One noisy view of texts."""

    masked: Tensor
    """(B, W) booleans."""
    weights: Tensor
    """(B, W) float64, what the nats of a masked token are multiplied with; 0 where nothing is masked."""


def units_of(texts: Texts, block_size: int | None) -> Tensor:
    """(B, W) which unit of its row each position belongs to, from 0: a block of a document, or a whole document."""
    positions = texts.visibility.positions
    opens = positions == 0 if block_size is None else positions % block_size == 0
    return opens.cumsum(1) - 1


def draw(
    texts: Texts, key: tuple[int, int], noise: Noise, estimator: Estimator, block_size: int | None = None
) -> list[Masks]:
    """Noisy views of texts, whose mean weighted loss is an unbiased estimate of the bound: two for "complementary",
    otherwise one.

    Args:
        texts: the rows.
        key: (seed, step).
        noise: the schedule; "count" needs none.
        estimator: "stratified": one time for each unit, evenly spread over slots and units, and every token masked by
            itself; "independent": the same with times drawn by themselves; "count": exactly k tokens of a unit of L,
            k evenly spread over 1..L; "complementary": a stratified view, and one in which just the others are masked.
        block_size: positions of a unit; None: a document is one.
    """
    units, slots = units_of(texts, block_size), texts.slots.unsqueeze(1)
    column = torch.arange(units.shape[1], device=units.device)
    noisy = uniform(fold("mask", *key), slots, column)  # (B, W)
    if estimator == "count":
        return [_counted(texts, units, noisy, times(key, slots, units))]
    if estimator == "independent":
        time = uniform(fold("time", *key), slots, units)
    else:
        time = times(key, slots, units)
    time = time.clamp(min=2.0**-53)
    rate, weight = 1 - noise.alpha(time), noise.weight(time)
    masked = texts.open & (noisy < rate)
    views = [Masks(masked, torch.where(masked, weight, 0))]
    if estimator == "complementary":
        others = texts.open & ~masked
        views.append(Masks(others, torch.where(others, weight * rate / (1 - rate), 0)))
    return views


def times(key: tuple[int, int], slots: Tensor, units: Tensor) -> Tensor:
    """(B, W) in [0, 1): evenly spread over the slots for each unit, and over the units of each row.

    Two such sequences, digit by digit in base 2 added without carrying: that moves whole strata and splits none.
    """
    unit = torch.arange(int(units.max()) + 1, device=units.device)
    of_unit, of_slot = (
        (stratified(fold(name, *key), index) * 2.0**53).long() for name, index in (("units", unit), ("slots", slots))
    )
    return (of_slot ^ of_unit[units]).double() * 2.0**-53


def _counted(texts: Texts, units: Tensor, noisy: Tensor, time: Tensor) -> Masks:
    """Exactly k of a unit's L open tokens, those with the smallest draws; each weighs L/k."""
    size = torch.zeros_like(time).scatter_add(1, units, texts.open.double()).gather(1, units)  # (B, W)
    count = (time * size).floor() + 1
    masked = texts.open & (_rank(units, noisy.masked_fill(~texts.open, 2)) < count)
    return Masks(masked, torch.where(masked, size / count, 0))


def _rank(units: Tensor, draws: Tensor) -> Tensor:
    """(B, W) how many positions of the same unit have a smaller draw."""
    order = (units + draws / 4).argsort(dim=1)  # by unit, then by draw: both are kept apart
    index = torch.arange(units.shape[1], device=units.device).expand(units.shape)
    place = torch.empty_like(index).scatter(1, order, index)
    first = torch.full_like(index, units.shape[1]).scatter_reduce(1, units, place, "amin").gather(1, units)
    return place - first
