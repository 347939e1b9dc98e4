"""DeepNorm: its formula, its two constants, and which weights start smaller."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.plugin import Dims, Site
from lit_small_lm.testing import check

DIMS = Dims(dim=64, n_layers=32, n_heads=4, n_kv_heads=2, head_dim=16, hidden=96)


def test_contracts():
    check(DeepNorm(norm=LayerNorm()))


def test_the_stream_weighs_more_than_the_branch():
    path, x = DeepNorm(norm=LayerNorm()).build(Site(DIMS, 0, place="ffn")), torch.randn(2, 5, 64)
    alpha = 64**0.25  # 2.83, the constant of a network of 32 layers
    torch.testing.assert_close(path(x, torch.tanh), path.norm(alpha * x + torch.tanh(x)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_layers", [2, 8, 32])
def test_alpha_grows_and_beta_falls_with_depth(n_layers):
    site = Site(Dims(64, n_layers, 4, 2, 16, 96), 0, place="mixer")
    scheme = DeepNorm()
    assert scheme.build(site).alpha == pytest.approx((2 * n_layers) ** 0.25)
    assert scheme.branch_init(site, "out") == pytest.approx(1 / (8 * n_layers) ** 0.25)
    assert scheme.branch_init(site, "qkv") == 1.0


@pytest.mark.parametrize("ffn", [LayerSpec().ffn, MLP()], ids=["gated", "plain"])
def test_values_and_what_follows_start_smaller_but_queries_and_keys_do_not(ffn):
    torch.manual_seed(0)
    net, beta = Backbone(BackboneSpec(norm=DeepNorm(), layer=LayerSpec(ffn=ffn)), DIMS, 31), 256**-0.25
    groups = torch.stack([layer.mixer.qkv_proj.weight for layer in net.layers]).unflatten(1, (2, 4 * 16))
    queries_and_keys, values = groups[:, :, :48], groups[:, :, 48:]
    assert queries_and_keys.std().item() == pytest.approx(0.02, rel=0.02)  # 196,608 draws: 0.2 % standard error
    assert values.std().item() == pytest.approx(0.02 * beta, rel=0.02)
    for linear in (m for m in net.modules() if getattr(m, "role", "") in ("out", "gate_up", "up", "down")):
        assert linear.weight.std().item() == pytest.approx(0.02 * beta, rel=0.06)  # 4,096 draws: 1.1 %


def test_the_values_are_those_that_attention_reads():
    """Silence what is called a value, and attention puts out nothing."""
    mixer = Attention().build(Site(DIMS, 0, place="mixer"))
    with torch.no_grad():
        mixer.qkv_proj.weight.unflatten(0, (2, -1))[:, mixer.qkv_proj.values] = 0
    q, k, v = mixer.heads(mixer.qkv_proj(torch.randn(2, 5, 64)))
    assert q.any() and k.any()
    assert not v.any()


def test_there_is_no_final_norm_and_each_layer_ends_at_mean_square_one():
    net, x = Backbone(BackboneSpec(norm=DeepNorm(norm=RMSNorm(eps=1e-12))), DIMS, 31), torch.randn(2, 5, 64)
    assert net.close(x) is x
    out = net.layers[7].ffn_path(x, torch.tanh)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 5), rtol=1e-5, atol=0)
