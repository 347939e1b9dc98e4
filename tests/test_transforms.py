"""Derivatives that operators of this package do not have are those of their plain twins."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from lit_small_lm import piecewise, products
from lit_small_lm.attending import attend
from lit_small_lm.context import Context
from lit_small_lm.nn import norms
from lit_small_lm.nn.head import summed_nll
from lit_small_lm.nn.norms import rms_norm
from lit_small_lm.products import linear
from lit_small_lm.transforms import transformed
from lit_small_lm.visibility import Visibility

ROWS, DIM = 96, 16
WEIGHT, GAIN, TARGETS = torch.randn(24, DIM), torch.rand(DIM), torch.arange(ROWS) % 24


def attention(h):
    """Of one head and row, queries, keys and values alike."""
    q = h[None, None]
    return attend(q, q, q, Context(Visibility.rows(torch.zeros(1, len(h), dtype=torch.long))))


FUNCTIONS = {
    "product": lambda h: linear(h, WEIGHT),
    "attention": attention,
    "norm": lambda h: rms_norm(h, GAIN, 1e-6),
    "summed loss": lambda h: summed_nll(h, WEIGHT, TARGETS)[0],
}


@pytest.fixture(autouse=True)
def fast_paths(monkeypatch):
    """Taken for sizes as small as here."""
    monkeypatch.setattr(products, "SUITED", torch.backends.mkldnn.is_available())
    monkeypatch.setattr(products, "LEAST_WORK", 1)
    monkeypatch.setattr(piecewise, "LEAST", dict.fromkeys(piecewise.LEAST, (1, 0)))
    monkeypatch.setattr(norms, "LEAST_VALUES", 1)


@pytest.fixture
def h():
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["product", "norm", "summed loss"])
def test_forward_mode_is_what_differences_say(name, h):
    function, direction = FUNCTIONS[name], torch.ones_like(h)
    _, found = jvp(function, (h,), (direction,))
    with forward_ad.dual_level():
        same = forward_ad.unpack_dual(function(forward_ad.make_dual(h, direction))).tangent
    before, after = (function((h + step * direction).double().float()) for step in (-1e-2, 1e-2))
    torch.testing.assert_close(found, (after - before) / 2e-2, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(same, found)


def test_attention_refuses_forward_mode_as_the_kernel_of_torch_does(h):
    with pytest.raises(NotImplementedError, match="forward AD"):
        jvp(attention, (h,), (torch.ones_like(h),))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's own attention under vmap
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_by_torch_func_are_those_of_autograd(name, h):
    def total(h):
        return FUNCTIONS[name](h).square().sum()

    leaf = h.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(grad(total)(h), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(vmap(grad(total))(h[None])[0], wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["product", "norm"])
def test_a_second_derivative_needs_no_gradient_of_the_weight(name, h):
    leaf = h.clone().requires_grad_()
    (once,) = torch.autograd.grad(FUNCTIONS[name](leaf).square().sum(), leaf, create_graph=True)
    (found,) = torch.autograd.grad(once.square().sum(), leaf)
    assert found.isfinite().all()
    assert found.any()


def test_a_norm_is_that_of_the_processor_whatever_the_default_device(h):
    norms._constant.cache_clear()
    with torch.device("meta"):
        found = rms_norm(h, GAIN, 1e-6)
    torch.testing.assert_close(found, F.rms_norm(h, GAIN.shape, GAIN, 1e-6))


def test_what_is_compiled_is_not_transformed():
    assert not transformed()
    assert not torch.compile(lambda: torch.tensor(transformed()), backend="eager")()
