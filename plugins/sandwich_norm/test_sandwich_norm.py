"""Sandwich-LN keeps the contracts, and is Peri-LN under its first name."""

import torch
from lit_small_lm.plugins.sandwich_norm import SandwichNorm

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.peri_norm import PeriNorm
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
    check(SandwichNorm())
    check(SandwichNorm(norm=RMSNorm()))


def test_it_is_peri_norm_with_the_same_operator():
    sandwich = logits(network(SandwichNorm()))
    assert torch.equal(sandwich, logits(network(PeriNorm(norm=LayerNorm()))))
    assert not torch.allclose(sandwich, logits(network(PeriNorm(norm=RMSNorm()))), rtol=1e-3)


def test_a_branch_is_normed_on_both_sides():
    path, x = network(SandwichNorm()).layers[1].ffn_path, torch.randn(2, 5, 16)
    with torch.no_grad():
        path.before.weight.normal_()
        path.after.bias.normal_()
    torch.testing.assert_close(path(x, torch.square), x + path.after(path.before(x).square()), rtol=1e-6, atol=1e-6)
