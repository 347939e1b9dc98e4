"""DyT and Derf against their formulas."""

import dataclasses

import pytest
import torch

from lit_small_lm.nn.pointwise_norms import Derf, DyT
from lit_small_lm.testing import check

H = 3 + 2 * torch.randn(4, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", [DyT(slope=2.0), Derf(slope=0.1, start=0.3)], ids=["DyT", "Derf"])
def test_contracts(spec):
    check(spec)


def drawn(spec):
    norm = spec.build(32).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def test_dyt():
    norm = drawn(DyT())
    torch.testing.assert_close(norm(H), norm.weight * torch.tanh(norm.slope * H) + norm.bias, rtol=1e-12, atol=1e-12)
    assert {name: tuple(p.shape) for name, p in norm.named_parameters()} == {
        "slope": (1,),
        "weight": (32,),
        "bias": (32,),
    }


def test_derf():
    norm = drawn(Derf())
    wanted = norm.weight * torch.erf(norm.slope * H + norm.offset) + norm.bias
    torch.testing.assert_close(norm(H), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [DyT(slope=0.7, start=0.4), Derf(slope=0.7, start=0.4)], ids=["DyT", "Derf"])
def test_where_parameters_start(spec):
    norm = spec.build(32)
    fresh = {name: parameter.detach().clone() for name, parameter in norm.named_parameters()}
    wanted = {"slope": 0.7, "weight": 0.4, "bias": 0.0, "offset": 0.0}
    for name, parameter in norm.named_parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, wanted[name]))
        parameter.data.normal_()
    norm.reset_parameters()
    for name, parameter in norm.named_parameters():
        assert torch.equal(parameter, fresh[name])
    assert spec.starting_at(2.0) == dataclasses.replace(spec, start=2.0)
