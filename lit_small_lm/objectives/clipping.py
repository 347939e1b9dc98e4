"""The search for the mask rates to train on (BD3-LM, arXiv 2503.09573): of some intervals the one whose losses scatter
least.

Low rates say little and scatter much. Which interval is best depends on the block size and on how far a network is
trained, so it is looked for anew during training. The trick: one pass with rates from all of 0..1 gives the losses of
every interval, those of the parts whose rate lies in it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_small_lm.batch import Batch
from lit_small_lm.objectives import masking
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.objectives.noise import ClippedNoise, LinearNoise
from lit_small_lm.plugin import Net

STEP = 0.05
"""Of the grid of both ends of an interval."""


class Interval(NamedTuple):
    """Mask rates from `low` to `high`."""

    low: float
    high: float

    def noise(self) -> ClippedNoise:
        return ClippedNoise(low=self.low, high=self.high)


def intervals(width: float = 0.5) -> list[Interval]:
    """All intervals of the grid that are at least so wide."""
    points = [round(STEP * number, 10) for number in range(round(1 / STEP) + 1)]
    return [Interval(low, high) for low in points for high in points if high - low >= width - 1e-9]


@torch.no_grad()
def sums(net: Net, objective: Denoising, batch: Batch, key: tuple[int, int], choices: list[Interval]) -> Tensor:
    """(I, 3) for each interval the number of parts whose rate lies in it, and the sums of their losses and of their
    squares; a part's loss is that of a token, as training weighs it. To be added over batches and processes. The
    network is asked as it is at the step of the key."""
    texts = objective.texts(batch)
    units, slots = masking.units_of(texts, objective.parts()), texts.slots.unsqueeze(1)
    (view,) = masking.draw(texts, key, LinearNoise(), "stratified", objective.parts())
    query, columns = objective.ask(texts, [view], batch.specials)
    nll = net(query.tokens, query.context(torch.tensor(key[1])), query.targets, query.scored) * query.weights
    nats = nll.new_zeros(units.numel()).index_add(0, columns, nll).view(units.shape)  # (B, W)
    rates, loss, size = (torch.zeros_like(nats) for _ in range(3))
    rates.scatter_(1, units, masking.times(key, slots, units))
    loss.scatter_add_(1, units, nats)
    size.scatter_add_(1, units, texts.open.to(nats))
    rates, loss = rates[size > 0], (loss / size)[size > 0]  # (U,)
    inside = torch.stack([(rates >= low) & (rates < high) for low, high in choices]).double()  # (I, U)
    return torch.stack([inside.sum(1), inside @ loss, inside @ loss.square()], dim=1)


def best(found: Tensor, choices: list[Interval]) -> Interval:
    """The interval whose losses have the smallest variance, of `sums` (I, 3); of equal ones the widest."""
    count, total, squares = found.unbind(1)
    variance = squares / count - (total / count) ** 2
    variance = torch.where(count > 1, variance * count / (count - 1), torch.inf)
    order = sorted(range(len(choices)), key=lambda i: (variance[i].item(), choices[i].low - choices[i].high))
    return choices[order[0]]
