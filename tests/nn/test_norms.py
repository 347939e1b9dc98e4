"""Norm operators against their formulas."""

import pytest
import torch

from lit_small_lm.errors import RequestError
from lit_small_lm.nn.norms import LayerNorm, RMSNorm

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
