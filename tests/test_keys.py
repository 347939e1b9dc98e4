"""Draws from counters: uniform, independent of what stands beside them, and evenly spread where they are stratified."""

import pytest
import torch

from lit_small_lm.keys import fold, seed_all, stratified, uniform


def counts(draws, bins):
    return torch.histc(draws.double(), bins, 0, 1)


def chi_square(draws, bins):
    """Of draws against the uniform distribution; its mean is bins - 1, its deviation sqrt(2 (bins - 1))."""
    wanted = draws.numel() / bins
    return ((counts(draws, bins) - wanted) ** 2 / wanted).sum().item()


def test_uniform_draws_are_uniform_along_every_counter():
    draws = uniform(7, torch.arange(300).unsqueeze(1), torch.arange(300))
    assert draws.dtype == torch.float64 and draws.min() >= 0 and draws.max() < 1
    for part in (draws, draws[:, :3], draws[:3], draws.diagonal()):
        assert chi_square(part, 20) < 19 + 5 * (2 * 19) ** 0.5
    pairs = torch.stack([draws[:, 1:], draws[:, :-1]]).mul(8).long()
    table = torch.bincount((pairs[0] * 8 + pairs[1]).flatten(), minlength=64)
    assert ((table - table.sum() / 64).square() / (table.sum() / 64)).sum() < 63 + 5 * (2 * 63) ** 0.5


def test_uniform_draws_depend_on_their_own_counters_alone():
    whole = uniform(3, torch.arange(8).unsqueeze(1), torch.arange(5))
    assert torch.equal(uniform(3, torch.arange(4, 8).unsqueeze(1), torch.arange(3)), whole[4:, :3])
    assert not torch.equal(uniform(4, torch.arange(8).unsqueeze(1), torch.arange(5)), whole)
    assert not torch.equal(uniform(3, torch.arange(5).unsqueeze(1), torch.arange(8)).T, whole)
    assert len(whole.unique()) == whole.numel()


def test_uniform_draws_are_these_on_every_machine():
    """The noise of a run that is resumed elsewhere must be that of the run."""
    assert uniform(0, torch.arange(3)).tolist() == [0.33805245419550545, 0.4327449275927212, 0.6815486371980359]


@pytest.mark.parametrize("power", [0, 1, 3, 6])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_stratified_draws_hit_every_part_once(power, start):
    count = 2**power
    for key in range(5):
        draws = stratified(key, torch.arange(start * count, (start + 1) * count))
        assert sorted((draws * count).long().tolist()) == list(range(count))


def test_each_stratified_draw_is_uniform_by_itself():
    """Over many keys, whatever its index: no index has a part of its own."""
    draws = torch.stack([stratified(fold("test", key), torch.tensor([0, 1, 5, 64])) for key in range(2000)])
    for column in draws.T:
        assert chi_square(column, 16) < 15 + 5 * (2 * 15) ** 0.5


def test_stratified_draws_are_in_another_order_for_each_key():
    orders = {tuple(stratified(key, torch.arange(8)).argsort().tolist()) for key in range(200)}
    assert len(orders) > 60


def test_seeding_gives_torch_what_its_own_seeding_gives():
    seed_all("test", 3)
    drawn = torch.rand(8)
    torch.manual_seed(fold("test", 3))
    assert torch.equal(torch.rand(8), drawn)


def test_seeding_leaves_nothing_behind_on_devices_that_are_not_in_use():
    """torch keeps every seeding of a device that nothing runs on, with its stack: a run of many steps would grow."""
    queues = [room._queued_calls for room in (torch.cuda, torch.xpu, torch.mtia)]
    before = [len(queue) for queue in queues]
    seed_all("test", 4)
    assert [len(queue) for queue in queues] == before
