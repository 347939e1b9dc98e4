"""SkipInit and ReZero keep the contracts, and do what their formulas say."""

import pytest
import torch
from lit_small_lm.plugins.skip_init import ReZero, SkipInit

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=4, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)


def network(norm):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(norm=norm), DIMS, 31)


def logits(net):
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    return net(tokens, Context(Visibility.rows(tokens)))


@pytest.mark.parametrize("spec", [SkipInit(norm=LayerNorm(), start=0.0), ReZero(start=0.5)], ids=["SkipInit", "ReZero"])
def test_contracts(spec):
    check(spec)


def test_a_gain_of_one_is_pre_norm():
    assert torch.equal(logits(network(SkipInit(start=1.0))), logits(network(PreNorm())))


def test_gains_of_zero_leave_the_embedding():
    net, x = network(ReZero()), torch.randn(2, 5, 16)
    assert torch.equal(net.layers[2].ffn_path(x, torch.cos), x)
    assert net.close(x) is x


@pytest.mark.parametrize(("spec", "gain"), [(SkipInit(), 0.5), (SkipInit(start=0.3), 0.3), (ReZero(start=2.0), 2.0)])
def test_a_branch_is_multiplied_by_its_gain(spec, gain):
    path, x = network(spec).layers[1].mixer_path, torch.randn(2, 5, 16)
    torch.testing.assert_close(path(x, torch.cos), x + gain * torch.cos(path.norm(x)), rtol=1e-6, atol=1e-6)


def test_rezero_has_no_norm():
    assert {p.name.rsplit(".", 1)[1] for p in network(ReZero()).named_roles() if p.role == "norm"} == {"gain"}


def test_gains_are_not_decayed():
    gains = [p for p in network(SkipInit()).named_roles() if p.name.endswith("gain")]
    assert len(gains) == 2 * 4
    assert {(gain.role, gain.decay) for gain in gains} == {("norm", 0)}
