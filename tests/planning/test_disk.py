"""What a run writes."""

import dataclasses

import pytest

from lit_small_lm.planning.disk import disk
from lit_small_lm.planning.workload import Workload
from lit_small_lm.training.optim import AdamW

RUN = Workload(optim=AdamW(), seq_len=16, batch_size=4, rows=4, steps=1000, tokens=64_000, every_n_steps=100, keep=3)


def of(vocab_size=1000, **changes):
    return disk(dataclasses.replace(RUN, **changes), vocab_size, weight_bytes=400, optimizer_bytes=800)


@pytest.mark.parametrize(("vocab_size", "size"), [(65_536, 2), (65_537, 4)])
def test_ids_take_two_bytes_or_four(vocab_size, size):
    assert of(vocab_size).token_bytes == size
    assert of(vocab_size).store_bytes == 64_000 * size


def test_checkpoints_hold_weights_and_state():
    assert of().checkpoint_bytes == 1200
    assert of(average="ema").checkpoint_bytes == 1600


def test_a_published_checkpoint():
    """nanoGPT's of GPT-2 without biases, float32 with Adam's state: 1,542,470,366 bytes, names of tensors included."""
    count = 124_337_664
    found = disk(RUN, 50_257, weight_bytes=4 * count, optimizer_bytes=8 * count).checkpoint_bytes
    assert found == pytest.approx(1_542_470_366, rel=0.04)


def test_as_many_as_there_are_at_once():
    """The newest three, the one before the decay, and the one that is being written."""
    assert (of().kept, of().checkpoints_bytes) == (5, 5 * 1200)
    assert of(steps=250).kept == 3
    assert of(keep=0).kept == 10
    assert of().total_bytes == 128_000 + 6000


def test_a_run_of_unknown_length():
    found = of(steps=None, tokens=None)
    assert (found.store_bytes, found.total_bytes, found.kept) == (None, None, 5)
    assert of(steps=None, tokens=None, keep=0).kept is None
