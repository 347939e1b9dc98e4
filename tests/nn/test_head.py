"""The chunked loss against its plain twin and against PyTorch's, gradients and weights included."""

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm.nn import head
from lit_small_lm.nn.head import capped, plain_nll, plain_nll_and_z, summed_nll, token_nll, token_nll_and_z

VOCAB = 13


def inputs(count=10, dtype=torch.float64):
    torch.manual_seed(0)
    h = torch.randn(count, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, 6, dtype=dtype, requires_grad=True)
    return h, weight, torch.randint(VOCAB, (count,)), torch.rand(count, dtype=dtype)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_logits", [1, VOCAB, 3 * VOCAB, 3 * VOCAB + 5, 9 * VOCAB, 10 * VOCAB, 1 << 26])
def test_chunked_equals_plain(chunk_logits, softcap):
    h, weight, targets, importance = inputs()
    chunked = token_nll(h, weight, targets, softcap, chunk_logits)
    plain = plain_nll(h, weight, targets, softcap)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((plain * importance).sum(), (h, weight))
    found = torch.autograd.grad((chunked * importance).sum(), (h, weight))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_plain_is_minus_the_log_of_the_softmax():
    h, weight, targets, _ = inputs()
    wanted = -torch.log(torch.softmax(h @ weight.T, -1))[torch.arange(10), targets]
    torch.testing.assert_close(plain_nll(h, weight, targets), wanted, rtol=1e-12, atol=1e-12)


def test_a_soft_cap_bounds_the_logits():
    h, weight, targets, _ = inputs()
    logits = capped(100 * (h @ weight.T), 2.0)
    assert logits.abs().max() <= 2.0
    wanted = F.cross_entropy(2 * torch.tanh(h @ weight.T / 2), targets, reduction="none")
    torch.testing.assert_close(plain_nll(h, weight, targets, 2.0), wanted, rtol=1e-12, atol=1e-12)


def test_small_pieces_never_hold_more_logits_than_asked(monkeypatch):
    sizes, linear = [], F.linear

    def spy(h, weight):
        out = linear(h, weight)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(F, "linear", spy)
    h, weight, targets, _ = inputs()
    token_nll(h, weight, targets, chunk_logits=3 * VOCAB).sum().backward()
    assert max(sizes) == 3 * VOCAB
    assert len(sizes) == 8  # four pieces, each once more in the backward pass


def test_half_precision_is_scored_in_float32():
    h, weight, targets, _ = inputs(dtype=torch.bfloat16)
    nll = token_nll(h, weight, targets)
    assert nll.dtype == torch.float32
    wanted = F.cross_entropy(F.linear(h, weight).float(), targets, reduction="none")
    torch.testing.assert_close(nll, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("chunk_logits", [1, 3 * VOCAB, 3 * VOCAB + 5, 1 << 26])
def test_z_in_pieces_equals_plain(chunk_logits):
    h, weight, targets, importance = inputs()
    found = token_nll_and_z(h, weight, targets, 2.0, chunk_logits)
    plain = plain_nll_and_z(h, weight, targets, 2.0)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad((plain.sum(0) * importance).sum(), (h, weight))
    found = torch.autograd.grad((found.sum(0) * importance).sum(), (h, weight))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_z_is_the_square_of_the_log_of_the_sum():
    h, weight, targets, _ = inputs()
    nll, squares = plain_nll_and_z(h, weight, targets)
    assert torch.equal(nll, plain_nll(h, weight, targets))
    torch.testing.assert_close(squares, torch.log(torch.exp(h @ weight.T).sum(-1)) ** 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", [token_nll, token_nll_and_z])
@pytest.mark.parametrize("chunk_logits", [VOCAB, 1 << 26])
def test_impossible_ids_are_left_out_of_the_softmax(score, chunk_logits):
    """As with a head that has no rows for them; their own rows get no gradient."""
    h, weight, targets, _ = inputs()
    kept = [index for index in range(VOCAB) if index not in (2, 5)]
    targets = torch.tensor(kept)[targets % len(kept)]
    found = score(h, weight, targets, None, chunk_logits, impossible=(2, 5))
    smaller = torch.tensor([kept.index(target) for target in targets.tolist()])
    wanted = score(h, weight[kept], smaller, None, chunk_logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(found.sum(), weight)
    assert not grad[[2, 5]].any() and grad[kept].any(1).all()


@pytest.mark.parametrize("weighted", ["weights", "no weights"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_logits", [1, 3 * VOCAB + 5, None])
def test_summed_equals_plain(chunk_logits, softcap, weighted):
    h, weight, targets, importance = inputs()
    importance = importance if weighted == "weights" else None
    total, nll = summed_nll(h, weight, targets, importance, softcap, chunk_logits)
    plain = plain_nll(h, weight, targets, softcap)
    wanted = plain.sum() if importance is None else (plain * importance).sum()
    torch.testing.assert_close(nll, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)
    assert not nll.requires_grad
    found = torch.autograd.grad(3 * total, (h, weight))  # whatever the sum is multiplied with
    for one, other in zip(found, torch.autograd.grad(3 * wanted, (h, weight)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_sum_holds_no_more_logits_than_asked(monkeypatch):
    sizes, linear = [], head.linear
    monkeypatch.setattr(head, "linear", lambda h, weight: sizes.append(len(h) * len(weight)) or linear(h, weight))
    h, weight, targets, importance = inputs()
    total, _ = summed_nll(h, weight, targets, importance, chunk_logits=3 * VOCAB)
    total.backward()
    logits = sizes[::2]  # between them the gradients by h
    assert logits == [3 * VOCAB] * 3 + [VOCAB]  # none is computed a second time


def test_a_sum_leaves_impossible_ids_out():
    h, weight, targets, importance = inputs()
    targets = torch.where((targets == 2) | (targets == 5), 0, targets)
    total, _ = summed_nll(h, weight, targets, importance, 2.0, 3 * VOCAB, impossible=(2, 5))
    wanted = (plain_nll(h, weight, targets, 2.0, (2, 5)) * importance).sum()
    for one, other in zip(
        torch.autograd.grad(total, (h, weight)), torch.autograd.grad(wanted, (h, weight)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_sum_under_autocast_is_that_of_autocast():
    """Its products are taken in bfloat16, and its gradients are summed up in float32."""
    h, weight, targets, importance = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = summed_nll(h, weight, targets, importance, chunk_logits=3 * VOCAB)
        wanted = (plain_nll(h, weight, targets) * importance).sum()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(total, (h, weight)), torch.autograd.grad(wanted, (h, weight)), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_a_graph_that_is_kept_gives_its_gradients_twice():
    """Without that the first pass takes the memory of what it has read."""
    h, weight, targets, importance = inputs()
    total, _ = summed_nll(h, weight, targets, importance)
    first = torch.autograd.grad(2 * total, (h, weight), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(2 * total, (h, weight)), strict=True):
        assert torch.equal(one, other)


def test_a_second_derivative_is_refused():
    h, weight, targets, importance = inputs()
    total, _ = summed_nll(h, weight, targets, importance)
    with pytest.raises(RuntimeError, match="differentiated again"):
        torch.autograd.grad(total, (h, weight), create_graph=True)


def test_many_gradients_at_once():
    h, weight, targets, importance = inputs()
    total, _ = summed_nll(h, weight, targets, importance)
    wanted = torch.autograd.grad(total, (h, weight), retain_graph=True)
    factors = torch.tensor([1.0, -2.0], dtype=total.dtype)
    for found, one in zip(torch.autograd.grad(total, (h, weight), factors, is_grads_batched=True), wanted, strict=True):
        torch.testing.assert_close(found, torch.stack([one, -2 * one]), rtol=1e-12, atol=1e-12)


def test_a_sum_without_gradients_is_the_same_sum():
    h, weight, targets, importance = inputs()
    with torch.no_grad():
        total, nll = summed_nll(h, weight, targets, importance)
    torch.testing.assert_close(total, summed_nll(h, weight, targets, importance)[0].detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(nll, plain_nll(h, weight, targets))
