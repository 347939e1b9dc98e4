"""Admin keeps the contracts, and its weights start at what has gone into the stream."""

import math

import pytest
import torch
from lit_small_lm.plugins.admin import Admin, profile

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.residual import PostNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=3, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))


def network(norm):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(norm=norm), DIMS, 31)


def run(net):
    return net(TOKENS, Context(Visibility.rows(TOKENS)))


def starts(net):
    return [path.weight.unique().item() for layer in net.layers for path in (layer.mixer_path, layer.ffn_path)]


@pytest.mark.parametrize(
    "spec", [Admin(norm=RMSNorm()), Admin(variances=(0.1, 0.2, 0.3, 0.4))], ids=["bare", "measured"]
)
def test_contracts(spec):
    check(spec)


def test_weights_of_one_are_post_norm():
    admin, post = network(Admin(assumed=0.0)), network(PostNorm(norm=LayerNorm(), embedding_norm=LayerNorm()))
    assert torch.equal(run(admin), run(post))


@pytest.mark.parametrize(
    ("spec", "sums"),
    [
        (Admin(), [1, 2, 3, 4, 5, 6]),
        (Admin(assumed=0.5), [1, 1.5, 2, 2.5, 3, 3.5]),
        (Admin(variances=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), [1, 2, 4, 7, 11, 16]),
        (Admin(variances=(3.0,), assumed=0.0), [1, 4, 4, 4, 4, 4]),
    ],
    ids=repr,
)
def test_where_weights_start(spec, sums):
    assert starts(network(spec)) == pytest.approx([math.sqrt(total) for total in sums], rel=1e-6)


def test_a_profile_is_what_branches_put_out_and_where_weights_start():
    net, outputs = network(Admin()), []
    hooks = [
        b.register_forward_hook(lambda _, args, out: outputs.append(out)) for x in net.layers for b in (x.mixer, x.ffn)
    ]
    found = profile(net, lambda: run(net))
    for hook in hooks:
        hook.remove()
    assert found == pytest.approx([out.var(unbiased=False).item() for out in outputs], rel=1e-5)
    assert starts(network(Admin(variances=found))) == pytest.approx(starts(net), rel=1e-6)
    again = network(Admin(variances=found))
    assert profile(again, lambda: run(again)) == pytest.approx(found, rel=1e-5)


def test_weights_are_not_decayed():
    weights = [p for p in network(Admin()).named_roles() if p.name.endswith("path.weight")]
    assert len(weights) == 2 * 3
    assert {(weight.role, weight.decay) for weight in weights} == {("norm", 0)}
