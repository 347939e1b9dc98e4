"""LayerScale keeps the contracts, and does what its formula says."""

import torch
from lit_small_lm.plugins.layer_scale import LayerScale

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=3, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)


def network(norm):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(norm=norm), DIMS, 31)


def logits(net):
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    return net(tokens, Context(Visibility.rows(tokens)))


def test_contracts():
    check(LayerScale())
    check(LayerScale(norm=LayerNorm(), start=1e-6))


def test_gains_of_one_are_pre_norm():
    scaled, pre = network(LayerScale(start=1.0)), network(PreNorm())
    assert torch.equal(logits(scaled), logits(pre))


def test_each_channel_has_its_own_gain():
    path = network(LayerScale(start=0.25)).layers[1].ffn_path
    assert (path.gamma == 0.25).all()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        path.gamma.copy_(torch.arange(16.0))
    added = path(x, torch.ones_like) - x
    torch.testing.assert_close(added, torch.arange(16.0).expand(2, 5, 16), rtol=0, atol=1e-5)  # float32 beside x


def test_gains_are_not_decayed():
    gains = [p for p in network(LayerScale()).named_roles() if p.name.endswith("gamma")]
    assert len(gains) == 2 * 3
    assert {(gain.role, gain.decay) for gain in gains} == {("norm", False)}
