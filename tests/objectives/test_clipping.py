"""The search for mask rates: what it adds up, and which interval it takes."""

import itertools

import pytest
import torch

from lit_small_lm.objectives import masking
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.clipping import Interval, best, intervals, sums
from lit_small_lm.objectives.noise import ClippedNoise, LinearNoise
from lit_small_lm.plugin import Batch, Specials

SPECIALS = Specials(9, end=0, pad=1, mask=2)


def batch(rows=64, time=32):
    tokens = torch.randint(3, 9, (rows, time + 1), generator=torch.Generator().manual_seed(0))
    index = torch.arange(rows)
    return Batch(tokens, index.unsqueeze(1).expand(tokens.shape).clone(), None, index, index, SPECIALS)


def one_nat(tokens, ctx, targets, scored):
    """A network that says one nat everywhere."""
    return torch.ones_like(targets, dtype=torch.float64)


def test_intervals_are_those_of_the_grid_that_are_wide_enough():
    found = intervals(0.5)
    assert {(0.0, 1.0), (0.3, 0.8), (0.45, 0.95), (0.5, 1.0), (0.0, 0.5)} <= set(found)
    assert all(high - low >= 0.5 - 1e-9 and 0 <= low < high <= 1 for low, high in found)
    assert len(found) == sum(range(1, 12))


def test_sums_are_over_the_parts_whose_rate_lies_within():
    objective, choices = BlockDiffusion(block_size=4), [Interval(0.0, 0.5), Interval(0.5, 1.0), Interval(0.0, 1.0)]
    found = sums(one_nat, objective, batch(), (0, 3), choices)
    texts = masking.lay_out(batch())
    units = masking.units_of(texts, 4)
    rates = masking.times((0, 3), texts.slots.unsqueeze(1), units)
    (view,) = masking.draw(texts, (0, 3), LinearNoise(), "stratified", 4)
    wanted = torch.zeros(3, 3, dtype=torch.float64)
    for row, unit in itertools.product(range(64), range(9)):
        part = (units[row] == unit) & texts.open[row]
        rate = float(rates[row, part][0])
        loss = float(view.weights[row, part].mean())
        for number, (low, high) in enumerate(choices):
            if low <= rate < high:
                wanted[number] += torch.tensor([1, loss, loss**2], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found[0] + found[1], found[2])


def test_the_network_is_asked_as_it_is_at_the_step():
    asked = []

    def net(tokens, ctx, targets, scored):
        asked.append(ctx.step.item())
        return one_nat(tokens, ctx, targets, scored)

    sums(net, BlockDiffusion(block_size=4), batch(), (0, 7), intervals())
    assert asked == [7]


def test_the_interval_with_the_least_variance_is_taken():
    choices = [Interval(0.0, 0.5), Interval(0.3, 0.8), Interval(0.2, 0.8), Interval(0.5, 1.0)]
    values = [[1.0, 5.0], [2.0, 3.0], [7.0, 8.0], [0.0, 9.0]]
    found = torch.tensor([[2, sum(pair), sum(x * x for x in pair)] for pair in values], dtype=torch.float64)
    assert best(found, choices) == Interval(0.2, 0.8), "of two equal ones the wider"
    found[2] = torch.tensor([1, 5.0, 25.0])
    assert best(found, choices) == Interval(0.3, 0.8), "one part has no variance"


def test_where_all_tokens_cost_the_same_the_highest_rates_scatter_least():
    choices = intervals(0.5)
    found = best(sums(one_nat, BlockDiffusion(block_size=4), batch(256), (0, 0), choices), choices)
    assert found.high == 1.0 and found.low >= 0.4
    assert found.noise() == ClippedNoise(low=found.low, high=1.0)


@pytest.mark.parametrize("network, low", [(lambda rate: 1.0, 0.5), (lambda rate: rate**4 * 40, 0.0)])
def test_it_follows_the_network(network, low):
    """Losses that rise steeply with the rate make high rates scatter more."""

    def net(tokens, ctx, targets, scored):
        rows, columns = scored // tokens.shape[1], scored % tokens.shape[1]
        masked = (tokens[:, : tokens.shape[1] // 2] == 2).double()
        block = columns // 8 * 8
        rate = torch.stack([masked[r, b : b + 8].mean() for r, b in zip(rows.tolist(), block.tolist(), strict=True)])
        return network(rate) * torch.ones_like(rate)

    choices = [Interval(0.0, 0.5), Interval(0.5, 1.0)]
    assert best(sums(net, BlockDiffusion(block_size=8), batch(), (0, 0), choices), choices).low == low
