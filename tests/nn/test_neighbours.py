"""The neighbour sum: both fast paths against the plain twin, gradients included, and a sum written out by hand."""

import pytest
import torch

from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.nn.neighbours import NeighbourSum, gathered, shifted, whole_rows

DOCS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2], [3] * 8 + [4]])


def gradients(out, *inputs):
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * probe).sum(), inputs, retain_graph=True)


def pad(h, kernel):
    return torch.nn.functional.pad(h, (0, 0, kernel - 1, 0))


@pytest.mark.parametrize("kernel", [1, 2, 4, 12])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_twins(kernel, packed):
    torch.manual_seed(0)
    h = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, kernel, dtype=torch.float64, requires_grad=True)
    view = Visibility.rows(h[..., 0], DOCS if packed else None)
    plain = gathered(h, weight, view)
    others = [shifted(pad(h, kernel), weight, view)] + ([] if packed else [whole_rows(h, weight)])
    for other in others:
        torch.testing.assert_close(other, plain, rtol=1e-12, atol=1e-12)
        for one, wanted in zip(gradients(other, h, weight), gradients(plain, h, weight), strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-12)


def test_plain_twin_by_hand():
    """out[t] = sum over j of w[j] h[t-j], and nothing from before the document."""
    h = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1)
    view = Visibility.rows(h[..., 0], torch.tensor([[0, 0, 0, 1]]))
    out = gathered(h, torch.tensor([[2.0, 3.0, 5.0]]), view)
    assert out.flatten().tolist() == [2, 3 * 1 + 2 * 10, 5 * 1 + 3 * 10 + 2 * 100, 2 * 1000]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_module_picks_the_right_path(packed):
    torch.manual_seed(0)
    module, h = NeighbourSum(5, 4, "here").double(), torch.randn(2, 9, 5, dtype=torch.float64)
    view = Visibility.rows(h[..., 0], DOCS if packed else None)
    torch.testing.assert_close(module(h, Context(view)), gathered(h, module.weight, view), rtol=1e-12, atol=1e-12)


def test_cache_keeps_the_left_context_of_each_address():
    torch.manual_seed(0)
    first, second = (NeighbourSum(5, 4, address).double() for address in ("one", "two"))
    h = torch.randn(2, 9, 5, dtype=torch.float64)
    whole, cache, pieces = Context(Visibility.rows(h[..., 0])), Cache(9), []
    for piece in h.split([2, 1, 6], dim=1):
        ctx = Context(Visibility.rows(piece[..., 0], start=cache.length), cache)
        pieces.append(second(first(piece, ctx), ctx))
        cache.advance(piece.shape[1])
    wanted = second(first(h, whole), whole)
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-12, atol=1e-12)


def test_starts_within_one_over_root_kernel():
    """PyTorch's own start of a depthwise convolution: uniform with fan-in `kernel`."""
    torch.manual_seed(0)
    weight = NeighbourSum(20_000, 4, "here").weight
    assert weight.abs().max() <= 0.5
    assert weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.02)  # 80,000 draws: 0.2 % standard error
