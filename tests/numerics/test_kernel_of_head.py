"""The kernel of the head's loss against the plain twin, gradients included."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm.nn.head import plain_nll, summed_nll

pytestmark = pytest.mark.usefixtures("kernels")
SIZES = [(1, 1, 1), (5, 3, 130), (40, 17, 128), (33, 64, 300), (130, 40, 701), (700, 24, 260)]
"""Positions, width and ids; the last are bytes, of which more positions pay at once in plain pieces."""


def drawn(positions, width, ids):
    torch.manual_seed(0)
    h = torch.randn(positions, width, requires_grad=True)
    weight = torch.randn(ids, width, requires_grad=True)
    return h, weight, torch.randint(ids, (positions,)), torch.rand(positions)


def kernel_calls(run):
    """How often `run` calls the kernel."""
    with torch.profiler.profile() as found:
        run()
    return sum(event.name == "lit_small_lm::nll_and_gradients" for event in found.events())


@pytest.mark.parametrize("rows", [16, 50, 1000])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "even"])
def test_equals_the_plain_twin(sizes, rows, weighted):
    h, weight, targets, weights = drawn(*sizes)
    weights = weights if weighted else None
    total, nats = summed_nll(h, weight, targets, weights, chunk_logits=rows * sizes[2], pieces="compiled")
    wanted = plain_nll(h, weight, targets)
    plain = (wanted if weights is None else wanted * weights).sum()
    torch.testing.assert_close(nats, wanted.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-5)
    found, exact = (torch.autograd.grad(3 * one, (h, weight)) for one in (total, plain))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_impossible_ids_are_left_out():
    """Among them all of one block of ids."""
    h, weight, targets, _ = drawn(20, 8, 300)
    impossible = (0, 5, *range(128, 256), 299)
    targets = targets % 100 + 6
    total, _ = summed_nll(h, weight, targets, impossible=impossible, pieces="compiled")
    kept = [id for id in range(300) if id not in impossible]
    where = {id: place for place, id in enumerate(kept)}
    plain = plain_nll(h, weight[kept], torch.tensor([where[id] for id in targets.tolist()])).sum()
    torch.testing.assert_close(total, plain)
    for one, other in zip(*(torch.autograd.grad(out, (h, weight)) for out in (total, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_large_and_small_logits(scale):
    h, weight, targets, _ = drawn(20, 8, 300)
    total, _ = summed_nll(scale * h, weight, targets, pieces="compiled")
    plain = plain_nll(scale * h, weight, targets).sum()
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(*(torch.autograd.grad(out, weight)[0] for out in (total, plain)), rtol=1e-4, atol=1e-3)


def test_nats_keep_their_digits_where_all_logits_are_large():
    """They are whole numbers, so that none of them is rounded; the largest is subtracted before anything else."""
    h, weight, targets, _ = drawn(50, 8, 300)
    h, weight = (torch.cat([part.detach().round(), torch.ones(len(part), 1)], 1) for part in (h, weight))
    h[:, -1] = 1e5
    _, nats = summed_nll(h.requires_grad_(), weight, targets, pieces="compiled")
    exact = plain_nll(h.double(), weight.double(), targets)
    torch.testing.assert_close(nats.double(), exact.detach(), rtol=1e-6, atol=2e-6)


def test_an_almost_certain_target():
    """What is left of the sum beside it is rounded once."""
    h, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[12.0], [0.0], [-1.0]])
    _, nats = summed_nll(h, weight, torch.tensor([0]), pieces="compiled")
    exact = plain_nll(h.double(), weight.double(), torch.tensor([0]))
    torch.testing.assert_close(nats.double(), exact.detach(), rtol=0.05, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(value):
    h, weight, targets, _ = drawn(20, 8, 300)
    with torch.no_grad():
        h[3, 2] = value
    total, nats = summed_nll(h, weight, targets, pieces="compiled")
    assert not total.isfinite() and nats.isfinite().sum() == 19
    assert not torch.autograd.grad(total, weight)[0].isfinite().all()


def test_any_layout_is_read():
    h, weight, targets, weights = (part.detach() for part in drawn(40, 17, 300))
    wanted = torch.ops.lit_small_lm.nll_and_gradients(h, weight, targets, weights, [], 16)
    laid = (
        h.t().contiguous().t(),
        weight.t().contiguous().t(),
        targets.repeat_interleave(2)[::2],
        weights.flip(0).flip(0),
    )
    found = torch.ops.lit_small_lm.nll_and_gradients(*laid, [], 16)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("threads", [2, 5])
def test_many_threads(threads):
    """More of them than there are blocks of ids, too."""
    h, weight, targets, weights = (part.detach() for part in drawn(40, 17, 500))
    before = torch.get_num_threads()
    wanted = torch.ops.lit_small_lm.nll_and_gradients(h, weight, targets, weights, [], 16)
    try:
        torch.set_num_threads(threads)
        found = torch.ops.lit_small_lm.nll_and_gradients(h, weight, targets, weights, [], 16)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_no_positions():
    h, weight, targets, _ = drawn(0, 8, 300)
    total, nats = summed_nll(h, weight, targets, pieces="compiled")
    assert total == 0 and nats.shape == (0,)
    assert not torch.autograd.grad(total, weight)[0].any()


def test_what_would_be_read_past_its_end_is_refused():
    h, weight, targets, weights = (part.detach() for part in drawn(20, 8, 300))
    for wrong in (
        (h.bfloat16(), weight.bfloat16(), targets, weights, []), (h, weight.double(), targets, weights, []),
        (h[:, 1:], weight, targets, weights, []), (h, weight, targets[1:], weights, []),
        (h, weight, targets, weights[1:], []), (h, weight, targets, weights.double(), []),
        (h, weight, targets + 300, weights, []), (h, weight, -1 - targets, weights, []),
        (h, weight, targets, weights, [300]), (h, weight, targets, weights, [-1]),
        (h, weight, targets.int(), weights, []),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            torch.ops.lit_small_lm.nll_and_gradients(*wrong, 16)
    with pytest.raises(RuntimeError, match="rows at once"):
        torch.ops.lit_small_lm.nll_and_gradients(h, weight, targets, weights, [], 0)


def test_targets_and_weights_of_other_types():
    h, weight, targets, weights = drawn(20, 8, 300)
    wanted, _ = summed_nll(h, weight, targets, weights, pieces="compiled")
    found, _ = summed_nll(h, weight, targets.int(), weights.double(), pieces="compiled")
    torch.testing.assert_close(found.float(), wanted)


def test_it_is_taken_in_compiled_networks_alone():
    h, weight, targets, _ = drawn(20, 8, 300)
    assert kernel_calls(lambda: summed_nll(h, weight, targets, pieces="compiled")) == 1
    assert kernel_calls(lambda: summed_nll(h, weight, targets)) == 0


def test_others_are_scored_in_plain_pieces():
    """Soft caps, and other precisions."""
    h, weight, targets, _ = drawn(20, 8, 300)
    assert kernel_calls(lambda: summed_nll(h, weight, targets, softcap=2.0, pieces="compiled")) == 0
    assert kernel_calls(lambda: summed_nll(h.double(), weight.double(), targets, pieces="compiled")) == 0
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = summed_nll(h, weight, targets, pieces="compiled")
        wanted = F.cross_entropy(F.linear(h, weight), targets, reduction="sum")
    torch.testing.assert_close(total, wanted, rtol=1e-2, atol=1e-2)
