"""Small batches are read several at a time, and handed out as if each were read when it is asked for."""

import numpy as np
import pytest
import torch

from lit_small_lm.batch import Specials
from lit_small_lm.data import loader
from lit_small_lm.data.loader import BatchLoader, PreparedFeed, Rows
from lit_small_lm.data.packing import ArrayStream, Concatenated
from lit_small_lm.data.plan import EvalPlan
from lit_small_lm.errors import RunError

LENGTH, DOCUMENTS = 8, [np.arange(1, 60), np.arange(60, 200)]


class Failing(ArrayStream):
    """A stream that ends in a place that cannot be read."""

    def read(self, start, stop):
        if start >= 100:
            raise RunError("here it ends")
        return super().read(start, stop)


def batches_of(stream, together, monkeypatch, start=0):
    monkeypatch.setattr(loader, "READ_TOGETHER", together)
    rows = Rows([Concatenated(stream(DOCUMENTS, 0), LENGTH)], Specials(200, 0, None, None))
    found = BatchLoader(PreparedFeed(rows, EvalPlan(len(rows), 3, 0, 1)))
    found.load_state_dict({"steps": start, "feed": {}})
    return found


@pytest.mark.parametrize("together", [1, 2 * 3 * LENGTH, 3 * 3 * LENGTH + 1, 10**6])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_are_those_that_are_read_one_by_one(together, start, monkeypatch):
    found = batches_of(ArrayStream, together, monkeypatch, start)
    plain = [found.feed.rows.__getitems__(rows) for rows in found.feed.plan.batches(start)]
    for number, (batch, one) in enumerate(zip(found, plain, strict=True), start + 1):
        assert torch.equal(batch.tokens, one.tokens) and torch.equal(batch.sample_ids, one.sample_ids)
        assert found.state_dict()["steps"] == number  # handed out, not read


@pytest.mark.parametrize("together", [1, 10**6])
def test_what_cannot_be_read_is_said_when_it_is_its_turn(together, monkeypatch):
    found = batches_of(Failing, together, monkeypatch)
    with pytest.raises(RunError, match="here it ends"):
        list(found)
    assert found.handed_out == 100 // LENGTH // 3
