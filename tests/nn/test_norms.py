"""Norm operators against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm.errors import RequestError
from lit_small_lm.nn import norms
from lit_small_lm.nn.norms import LayerNorm, RMSNorm, rms_norm

H = 3 + 2 * torch.randn(4, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_rms_norm():
    norm = RMSNorm(eps=0.1).build(32).double()
    with torch.no_grad():
        norm.weight.normal_()
    wanted = H / (H.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(H), wanted, rtol=1e-12, atol=1e-12)


def test_rms_norm_with_a_gain_around_one():
    norm = RMSNorm(eps=0.1, gain="1+w").build(32).double()
    plain = RMSNorm(eps=0.1).build(32).double()
    torch.testing.assert_close(norm(H), plain(H), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        norm.weight.normal_()
        plain.weight.copy_(1 + norm.weight)
    torch.testing.assert_close(norm(H), plain(H), rtol=1e-12, atol=1e-12)
    norm.reset_parameters()
    assert not norm.weight.any()


def plain_rms_norm(h, weight, eps):
    return F.rms_norm(h, weight.shape, weight, eps)


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(norms, "LEAST_VALUES", 0)
    assert (
        type(rms_norm(H, torch.ones(32).double().requires_grad_(), 0.1).grad_fn).__name__ == "_GradientByHandBackward"
    )


@pytest.fixture
def by_autograd():
    assert type(rms_norm(H, torch.ones(32).double().requires_grad_(), 0.1).grad_fn).__name__ == "MulBackward0"


@pytest.mark.parametrize("way", ["by_hand", "by_autograd"])
@pytest.mark.parametrize("h", [H, H.transpose(0, 1), 1e-3 * H], ids=["in order", "transposed", "small"])
def test_few_operations_and_the_plain_twin_agree_in_values_and_gradients(h, way, request):
    request.getfixturevalue(way)
    grad, found = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(1)), {}
    for name, norm in (("few", rms_norm), ("plain", plain_rms_norm)):
        given, weight = h.detach().clone().requires_grad_(), torch.linspace(-1, 2, 32).double().requires_grad_()
        out = norm(given, weight, 1e-5)
        found[name] = [out, *torch.autograd.grad(out, (given, weight), grad)]
        with torch.no_grad():
            torch.testing.assert_close(norm(given, weight, 1e-5), out, rtol=0, atol=0)
    torch.testing.assert_close(found["few"], found["plain"], rtol=1e-10, atol=1e-10)


def test_few_operations_in_float32_and_under_autocast(by_hand):
    h, weight, grad = H.float().requires_grad_(), torch.linspace(-1, 2, 32).requires_grad_(), torch.randn(H.shape)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(rms_norm(h, weight, 1e-5), (h, weight), grad)
    wanted = torch.autograd.grad(plain_rms_norm(h, weight, 1e-5), (h, weight), grad)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_of_gradients_and_batched_ones(by_hand):
    h, weight = H[0].clone().requires_grad_(), torch.linspace(-1, 2, 32).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda h, weight: rms_norm(h, weight, 0.1), (h[:2], weight))
    out, ways = rms_norm(h, weight, 0.1), torch.eye(32, dtype=torch.float64).unsqueeze(1).expand(-1, *h.shape)
    batched = torch.autograd.grad(out, h, ways, retain_graph=True, is_grads_batched=True)[0]
    one_by_one = [torch.autograd.grad(out, h, way, retain_graph=True)[0] for way in ways]
    torch.testing.assert_close(batched, torch.stack(one_by_one), rtol=1e-12, atol=1e-12)


def test_what_has_a_kernel_is_left_to_it():
    assert not norms.kernel(H, torch.ones(32).double())
    assert norms.kernel(H.to("meta"), torch.ones(32).double()) and norms.kernel(H.bfloat16(), torch.ones(32))


@pytest.mark.parametrize("shift", ["bias", "none"])
def test_layer_norm(shift):
    norm = LayerNorm(eps=0.1, shift=shift).build(32).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    centred = H - H.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    wanted = wanted if shift == "none" else wanted + norm.bias
    assert len(list(norm.parameters())) == (2 if shift == "bias" else 1)
    torch.testing.assert_close(norm(H), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("bare", "own"), [(RMSNorm(gain="none"), RMSNorm()), (LayerNorm(gain="none"), LayerNorm())], ids=["RMS", "Layer"]
)
def test_without_a_gain_there_are_no_parameters(bare, own):
    assert not list(bare.build(32).parameters())
    torch.testing.assert_close(bare.build(32)(H.float()), own.build(32)(H.float()), rtol=1e-6, atol=1e-6)
    with pytest.raises(RequestError, match="gain: none, where a gain has to start at 0.5"):
        bare.starting_at(0.5)


@pytest.mark.parametrize(
    "spec", [RMSNorm(), RMSNorm(gain="1+w"), LayerNorm(), LayerNorm(shift="none")], ids=["w", "1+w", "bias", "none"]
)
def test_a_gain_may_start_anywhere(spec):
    norm, plain = spec.starting_at(0.25).build(32), spec.build(32)
    torch.testing.assert_close(norm(H.float()), plain(H.float()) / 4, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    norm.reset_parameters()
    torch.testing.assert_close(norm(H.float()), plain(H.float()) / 4, rtol=1e-6, atol=1e-6)
