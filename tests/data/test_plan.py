"""Which rows a step takes: a function of the step and the seed, shared out to processes without changing it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_small_lm.data.loader import BatchLoader, PreparedFeed, Rows
from lit_small_lm.data.mixture import Interleaving
from lit_small_lm.data.packing import ArrayStream, Concatenated
from lit_small_lm.data.plan import BLOCK, EvalPlan, Pace, RowOrder, Shares, TrainPlan, Warmup
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Specials

SPECIALS = Specials(vocab_size=40, end=0, pad=1, mask=2)
BOTH = Warmup(batch_size=4, seq_len=7)


def plan_of(world_size, accumulate, rank=0, warmup=BOTH, steps=10, rows=(23, 11)):
    order = RowOrder(rows, Interleaving([0.75, 0.25]), ["a", "b"], 7)
    return TrainPlan(Shares(Pace(32, 16, warmup), accumulate, rank, world_size, steps), order)


def taken(world_size, accumulate, start=0, **more):
    """(row, pieces) of each global step, by slot, as all processes together take them."""
    found = {}
    for rank in range(world_size):
        plan = plan_of(world_size, accumulate, rank, **more)
        for number, batch in enumerate(plan.batches(start), start):
            for wanted in batch:
                found[number // accumulate, wanted.slot] = (wanted.row, wanted.pieces)
    return found


def test_processes_and_accumulation_do_not_change_the_order():
    alone = taken(1, 1)
    assert alone == taken(2, 1) == taken(1, 4) == taken(2, 2)


def test_starting_later_goes_on_where_it_would_have_been():
    whole, late = taken(1, 2), taken(1, 2, start=7)
    assert late and all(whole[key] == row for key, row in late.items() if key[0] > 3)


def test_warm_ups_double_three_times():
    pace = Pace(32, 16, BOTH)
    assert [pace.rows(step) for step in range(6)] == [4, 4, 8, 16, 32, 32]
    assert [pace.pieces(step) for step in range(9)] == [8, 8, 8, 4, 4, 2, 2, 1, 1]
    found = taken(1, 1)
    assert [sum(step == s for step, _ in found) for s in range(5)] == [4, 4, 8, 16, 32]
    assert [found[step, 0][1] for step in range(9)] == [8, 8, 8, 4, 4, 2, 2, 1, 1]


@given(st.integers(0, 50), st.integers(0, 200), st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_rows_before_a_step_are_counted_without_walking(length, step, rows):
    pace = Pace(32, 16, Warmup(batch_size=length))
    assert pace.rows_before(step) == sum(pace.rows(s) for s in range(step))
    reaching = pace.steps_reaching(rows)
    assert pace.rows_before(reaching) >= rows and (reaching == 0 or pace.rows_before(reaching - 1) < rows)
    within = pace.steps_within(rows)
    assert within == 1 or pace.rows_before(within) <= rows < pace.rows_before(within + 1)
    assert pace.steps_of_tokens(rows * 16) == reaching


def test_an_epoch_takes_every_row_once_and_the_next_another_order():
    order = RowOrder([23], Interleaving([1.0]), [""], 7)
    first, second = order.rows(0, 23), order.rows(23, 46)
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert order.rows(20, 30) == [*first[20:], *second[:7]]
    assert RowOrder([23], Interleaving([1.0]), [""], 8).rows(0, 23) != first


def test_components_have_epochs_of_their_own_and_keep_their_order_when_others_join():
    order = RowOrder([23, 11], Interleaving([0.5, 0.5]), ["a", "b"], 7)
    rows = order.rows(0, 46)
    assert sorted(row for row in rows if row < 23) == list(range(23))
    assert sorted(row - 23 for row in rows if row >= 23)[:4] == [0, 0, 1, 1]  # 23 of 11: seen twice
    alone = RowOrder([11], Interleaving([1.0]), ["b"], 7).rows(0, 23)
    assert [row - 23 for row in rows if row >= 23] == alone


def test_blocks_join():
    order = RowOrder([3000, 500], Interleaving([0.7, 0.3]), ["a", "b"], 0)
    assert order.rows(BLOCK - 5, BLOCK + 5) == order.rows(BLOCK - 5, BLOCK) + order.rows(BLOCK, BLOCK + 5)


WEIGHTS = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 10**7), st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_any_window_of_a_mixture_is_found_from_its_number(weights, first, count):
    mixed = Interleaving(weights)
    component, number = mixed.window(first, first + count)
    before, after = mixed.counts(first), mixed.counts(first + count)
    for c in range(len(weights)):
        assert number[component == c].tolist() == list(range(before[c], after[c]))
    middle = first + count // 2
    halves = [mixed.window(first, middle)[0], mixed.window(middle, first + count)[0]]
    assert np.concatenate(halves).tolist() == component.tolist()


@given(WEIGHTS, st.integers(1, 10**7))
@settings(max_examples=200, deadline=None)
def test_shares_are_kept_to_a_row_or_two_at_any_point(weights, rows):
    counts = Interleaving(weights).counts(rows)
    shares = np.array(weights) / sum(weights)
    assert counts.sum() == rows
    assert np.abs(counts - shares * rows).max() <= len(weights) / 2 + 1 + rows * 1e-5
    if rows > 1000:
        assert np.abs(counts / rows - shares).max() < 0.005


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: plan_of(2, 3), "multiples of 48"),
        (lambda: plan_of(8, 1), "begins with 4; allowed: multiples of 64"),
        (lambda: Pace(12, 16, Warmup(batch_size=5)), "data.batch_size, which is 12"),
        (lambda: Pace(16, 12, Warmup(seq_len=5)), "data.seq_len, which is 12"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(make, says):
    with pytest.raises(RequestError, match=says):
        make()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_deals_every_row_to_one_process(world_size):
    dealt = [
        wanted.row
        for rank in range(world_size)
        for batch in EvalPlan(11, 4, rank, world_size).batches(0)
        for wanted in batch
    ]
    assert sorted(row for row in dealt if row >= 0) == list(range(11))
    assert len({len(EvalPlan(11, 4, rank, world_size)) for rank in range(world_size)}) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_from_its_state(workers):
    rows = Rows([Concatenated(ArrayStream([np.arange(3, 40)], 0), 5)], SPECIALS)
    order = RowOrder([len(rows)], Interleaving([1.0]), [""], 0)
    plan = TrainPlan(Shares(Pace(2, 5), 2, 0, 1, steps=6), order)

    def loader():
        return BatchLoader(PreparedFeed(rows, plan, workers))

    whole = [batch.sample_ids.tolist() for batch in loader()]
    first = loader()
    iterator = iter(first)
    head = [next(iterator).sample_ids.tolist() for _ in range(4)]
    again = loader()
    again.load_state_dict(first.state_dict())
    assert head + [batch.sample_ids.tolist() for batch in again] == whole
    assert [batch.sample_ids.tolist() for batch in again] == whole  # only the first pass goes on
