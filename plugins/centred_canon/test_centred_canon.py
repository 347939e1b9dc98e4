"""Centred Canon layers keep the contracts, begin as causal ones, and never look further than attention."""

import pytest
import torch
from lit_small_lm.plugins.centred_canon import CentredCanon, CentredSum

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)


def network(canon=None):
    torch.manual_seed(0)
    layer = LayerSpec(canon_at="ABCD") if canon is None else LayerSpec(canon=canon, canon_at="ABCD")
    return Backbone(BackboneSpec(layer=layer), DIMS, 31)


def logits(net, kind):
    tokens = torch.randint(31, (2, 10), generator=torch.Generator().manual_seed(1))
    return net(tokens, Context(Visibility.rows(tokens, kind=kind, block_size=3)))


def test_contracts():
    check(CentredCanon())
    check(CentredCanon(kernel=2, ahead=5))


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "block", "doubled"])
def test_it_begins_as_the_causal_layer_whose_weights_it_takes(kind):
    causal, centred = network(), network(CentredCanon())
    for parameter in centred.parameters():
        parameter.data.normal_()
    centred.load_state_dict(causal.state_dict())
    torch.testing.assert_close(logits(centred, kind), logits(causal, kind))
    logits(centred, kind).sum().backward()
    taps = [module.right for module in centred.modules() if isinstance(module, CentredSum)]
    assert len(taps) == 8
    assert [bool(tap.grad.any()) for tap in taps] == [kind != "causal"] * 8


def test_right_taps_by_hand():
    layer = CentredCanon(kernel=1, ahead=2).build(site(), 1)
    with torch.no_grad():
        layer.sum.weight.zero_()
        layer.right.copy_(torch.tensor([[10.0, 100.0]]))
    h = torch.tensor([1.0, 2, 3, 4, 5]).view(1, 5, 1)
    wanted = {
        "causal": [1, 2, 3, 4, 5],
        "bidirectional": [1 + 20 + 300, 2 + 30 + 400, 3 + 40 + 500, 4 + 50, 5],
        "block": [1 + 20, 2, 3 + 40, 4, 5],
    }
    for kind, values in wanted.items():
        view = Visibility.rows(h[..., 0], kind=kind, block_size=2)
        assert layer(h, Context(view)).flatten().tolist() == values, kind


def site():
    from lit_small_lm.plugin import Site

    return Site(DIMS, 0, "canon_A")
