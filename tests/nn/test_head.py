"""The chunked loss against its plain twin and against PyTorch's, gradients and weights included."""

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm.nn.head import capped, plain_nll, plain_nll_and_z, token_nll, token_nll_and_z

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
