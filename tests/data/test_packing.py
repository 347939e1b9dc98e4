"""Rows and their order: every token once, and nothing but the seed decides when."""

import numpy as np
import pytest
import torch

from lit_small_lm.data.packing import BatchLoader, EvalPlan, Rows, TrainPlan, Wanted
from lit_small_lm.data.store import SplitTokens
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Specials

END, PAD = 0, 1
SPECIALS = Specials(vocab_size=40, end=END, pad=PAD, mask=2)
STARTS = np.array([0, 5, 6, 14])
TOKENS = np.array([END, 11, 12, 13, 14, END, END, 21, 22, 23, 24, 25, 26, 27, END, 31, 32, END], dtype=np.uint16)
SPLIT = SplitTokens(TOKENS, STARTS)


def test_evaluation_rows_hold_every_target_once():
    rows = Rows(SPLIT, 5, SPECIALS, whole=False)
    batch = rows.__getitems__([Wanted(i, i) for i in range(len(rows))])
    targets = batch.tokens[:, 1:][batch.loss_mask]
    assert targets.tolist() == TOKENS[1:].tolist()
    docs = batch.doc_ids[:, :-1][batch.loss_mask]
    assert docs.tolist() == [0] * 5 + [1] + [2] * 8 + [3] * 3
    assert (batch.tokens[:, 1:][~batch.loss_mask] == PAD).all()


def test_training_rows_are_whole_and_need_no_mask():
    rows = Rows(SPLIT, 5, SPECIALS, whole=True)
    batch = rows.__getitems__([Wanted(i, i) for i in range(len(rows))])
    assert len(rows) == 3
    assert batch.loss_mask is None
    assert batch.tokens.tolist() == [TOKENS[i : i + 6].tolist() for i in (0, 5, 10)]


def test_a_padding_row_counts_nothing():
    batch = Rows(SPLIT, 5, SPECIALS, whole=False).__getitems__([Wanted(-1, 0)])
    assert not batch.loss_mask.any()
    assert (batch.doc_ids == -1).all()


def order(world_size, accumulate, steps=10, start=0):
    """Row numbers of each global step, by slot, as all processes together take them."""
    found = {}
    for rank in range(world_size):
        plan = TrainPlan(23, 7, 4, accumulate, rank, world_size, steps)
        for number, batch in enumerate(plan.batches(start), start):
            for wanted in batch:
                found[number // accumulate, wanted.slot] = wanted.row
    return found


def test_processes_and_accumulation_do_not_change_the_order():
    alone = order(1, 1)
    assert len(alone) == 40
    assert alone == order(2, 1) == order(1, 4) == order(2, 2)


def test_an_epoch_takes_no_row_twice_and_the_next_another_order():
    alone = order(1, 1)
    first = [alone[step, slot] for step in range(5) for slot in range(4)]
    second = [alone[step, slot] for step in range(5, 10) for slot in range(4)]
    assert len(set(first)) == len(first) == 20
    assert first != second


def test_starting_later_goes_on_where_it_would_have_been():
    whole, late = order(1, 2), order(1, 2, start=7)
    assert late and all(whole[key] == row for key, row in late.items() if key[0] > 3)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(RequestError, match="multiples of 6"):
        TrainPlan(100, 0, 8, 3, 0, 2, 10)


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
    plan = TrainPlan(3, 0, 1, 1, 0, 1, steps=6)
    rows = Rows(SPLIT, 5, SPECIALS, whole=True)
    whole = [batch.sample_ids.tolist() for batch in BatchLoader(rows, plan, workers)]
    loader = BatchLoader(rows, plan, workers)
    iterator = iter(loader)
    head = [next(iterator).sample_ids.tolist() for _ in range(4)]
    state = loader.state_dict()
    again = BatchLoader(rows, plan, workers)
    again.load_state_dict(state)
    assert head + [batch.sample_ids.tolist() for batch in again] == whole
    assert [batch.sample_ids.tolist() for batch in again] == whole  # only the first pass goes on


def test_batches_move_as_one():
    batch = Rows(SPLIT, 5, SPECIALS, whole=True).__getitems__([Wanted(0, 0)]).to("cpu", non_blocking=True)
    assert batch.loss_mask is None
    assert isinstance(batch.tokens, torch.Tensor)
