"""CompleteP: the table of its paper, and that the first steps move a network of any size alike."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.completep import CompletePInit, CompletePNorm
from lit_small_lm.nn.init import NormalInit
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check
from lit_small_lm.training.optim import AdamW

HIDDEN = ("qkv", "out", "gate_up", "up", "down")


def dims_of(dim, n_layers):
    return Dims(dim=dim, n_layers=n_layers, n_heads=dim // 16, n_kv_heads=dim // 16, head_dim=16, hidden=3 * dim)


def test_contracts():
    check(CompletePInit(base_dim=8, base_layers=1))
    check(CompletePNorm(base_dim=8, base_layers=1, alpha=0.5))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_table(alpha):
    init, wide = CompletePInit(std_dev=0.1, base_dim=16, base_layers=2, alpha=alpha), dims_of(64, 18)
    deeper = 9 ** (alpha - 1)  # four times as wide, nine times as deep
    for role in HIDDEN:
        assert init.std(role, wide) == pytest.approx(0.1 / 2)
        assert init.lr_scale(role, wide) == pytest.approx(deeper / 4)
        assert init.decays(role, wide) == pytest.approx(4)
    for role in ("embedding", "positions", "head"):
        assert (init.std(role, wide), init.lr_scale(role, wide)) == (0.1, 1.0)
    for role in ("norm", "bias", "convolution"):
        assert init.lr_scale(role, wide) == pytest.approx(deeper)
    assert [init.decays(role, wide) for role in ("embedding", "norm", "bias", "head", "convolution")] == [0, 0, 0, 1, 1]


def test_the_small_network_is_pre_norm_with_a_normal_init():
    small, found = dims_of(32, 2), []
    scheme, init = CompletePNorm(base_dim=32, base_layers=2), CompletePInit(base_dim=32, base_layers=2)
    for spec in (BackboneSpec(norm=scheme, init=init), BackboneSpec(norm=PreNorm(), init=NormalInit())):
        torch.manual_seed(0)
        tokens = torch.randint(31, (2, 9))
        found.append(Backbone(spec, small, 31)(tokens, Context(Visibility.rows(tokens))))
    assert torch.equal(*found)


def test_branches_and_logits_are_divided():
    net = Backbone(BackboneSpec(norm=CompletePNorm(base_dim=16, base_layers=2)), dims_of(64, 6), 31)
    x, path = torch.randn(2, 5, 64), net.layers[3].ffn_path
    torch.testing.assert_close(path(x, torch.cos), x + torch.cos(path.norm(x)) / 3)
    torch.testing.assert_close(net.close(x), net.close.norm(x) / 4)


def moved(spec, dims, steps=4):
    """Root mean square of the change of the logits in a few steps of Adam, on one batch of random tokens."""
    torch.manual_seed(0)
    net = Backbone(spec, dims, 64)
    optimizer = AdamW(lr=0.01).build(list(net.named_roles()), fused=False)
    tokens = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(1))
    ctx = Context(Visibility.rows(tokens))
    before = net(tokens, ctx).detach()
    for _ in range(steps):
        optimizer.zero_grad()
        net(tokens, Context(Visibility.rows(tokens)), tokens.roll(-1, 1)).mean().backward()
        optimizer.step()
    return (net(tokens, Context(Visibility.rows(tokens))) - before).square().mean().sqrt().item()


def test_a_step_moves_wide_and_deep_networks_as_it_moves_the_small_one():
    """Under the usual parameterisation the same rate moves the logits of the large network several times as far."""
    small, large = dims_of(32, 2), dims_of(128, 8)
    scheme = CompletePNorm(base_dim=32, base_layers=2)
    complete = BackboneSpec(norm=scheme, init=CompletePInit(base_dim=32, base_layers=2), head="untied")
    usual = BackboneSpec(head="untied")
    ratio, usual_ratio = (moved(spec, large) / moved(spec, small) for spec in (complete, usual))
    assert 0.5 < ratio < 2
    assert usual_ratio > 3
