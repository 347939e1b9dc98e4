"""Initial weights by role."""

import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.init import DepthScaledInit, FanInInit, NormalInit, ScaledInit, ZeroOutInit
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.positions import Learned
from lit_small_lm.plugin import NormScheme
from lit_small_lm.shapes import FixedShape

DIMS = FixedShape(dim=128, n_layers=8, n_heads=2, hidden=256).resolve()


def deviations(spec):
    """Measured deviation by role, biases and norms left out."""
    torch.manual_seed(0)
    net, found = Backbone(spec, DIMS, 500), {}
    for _, tensor, role, *_ in net.named_roles():
        found.setdefault(role, []).append(tensor.flatten())
    return {role: torch.cat(tensors).std().item() for role, tensors in found.items() if role not in ("norm", "bias")}


@pytest.mark.parametrize("spec", [BackboneSpec(), BackboneSpec(head="untied", positions=Learned(length=300))])
def test_normal_init_is_one_deviation_for_all(spec):
    for role, deviation in deviations(spec).items():
        assert deviation == pytest.approx(0.02, rel=0.02), role  # 38,400 draws or more: 0.4 % standard error


def test_scaled_init_shrinks_the_outputs_of_branches_alone():
    found = deviations(BackboneSpec(init=ScaledInit(std_dev=0.1), head="untied"))
    for role, deviation in found.items():
        wanted = 0.1 / math.sqrt(2 * 8) if role in ("out", "down") else 0.1
        assert deviation == pytest.approx(wanted, rel=0.02), role
    assert {"out", "down", "head", "embedding", "qkv", "gate_up"} == set(found)


def test_biases_start_at_zero_and_gains_at_one():
    net = Backbone(BackboneSpec(layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"))), DIMS, 50)
    biases = [tensor for _, tensor, role, *_ in net.named_roles() if role == "bias"]
    gains = [tensor for _, tensor, role, *_ in net.named_roles() if role == "norm"]
    assert len(biases) == 4 * 8
    assert len(gains) == 2 * 8 + 1
    assert not any(bias.any() for bias in biases)
    assert all((gain == 1).all() for gain in gains)


def test_a_scheme_may_scale_its_branches_outputs(monkeypatch):
    def branch_init(self, site, role):
        return {"down": 1 / (site.layer + 1), "out": 3.0}.get(role, 1.0)

    monkeypatch.setattr(NormScheme, "branch_init", branch_init)
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(), DIMS, 50)
    for index, layer in enumerate(net.layers):
        assert layer.ffn.down_proj.weight.std().item() == pytest.approx(0.02 / (index + 1), rel=0.03)
        assert layer.mixer.o_proj.weight.std().item() == pytest.approx(0.06, rel=0.03)
        assert layer.mixer.qkv_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_decay_spares_norms_biases_and_embeddings():
    init = NormalInit()
    assert [
        role for role in ("embedding", "positions", "norm", "bias", "qkv", "head", "other") if init.decays(role, DIMS)
    ] == [
        "qkv",
        "head",
        "other",
    ]


def test_depth_scaled_init_shrinks_outputs_by_the_layers_own_number():
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(init=DepthScaledInit(std_dev=0.1), head="untied"), DIMS, 500)
    for number, layer in enumerate(net.layers, start=1):
        for output in (layer.mixer.o_proj, layer.ffn.down_proj):
            assert output.weight.std().item() == pytest.approx(0.1 / math.sqrt(2 * number), rel=0.03)
        for other in (layer.mixer.qkv_proj, layer.ffn.gate_up_proj):
            assert other.weight.std().item() == pytest.approx(0.1, rel=0.03)
    for outside in (net.embed, net.head):
        assert outside.weight.std().item() == pytest.approx(0.1, rel=0.03)


def test_fan_in_init_goes_by_the_inputs_of_each_weight():
    dims = FixedShape(dim=128, n_layers=2, n_heads=4, head_dim=16, hidden=256).resolve()
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(init=FanInInit(gain=2.0, std_dev=0.3), head="untied"), dims, 500)
    mixer, ffn = net.layers[1].mixer, net.layers[1].ffn
    wanted = {mixer.qkv_proj: 128, mixer.o_proj: 64, ffn.gate_up_proj: 128, ffn.down_proj: 256}
    for linear, fan_in in wanted.items():
        assert linear.weight.std().item() == pytest.approx(2 / math.sqrt(fan_in), rel=0.05)
        assert FanInInit(gain=2.0).std(linear.role, dims) == pytest.approx(2 / math.sqrt(fan_in))
    assert net.embed.weight.std().item() == pytest.approx(0.3, rel=0.05)
    h = torch.randn(64, 128)
    assert (ffn.gate_up_proj(h).std() / 2).item() == pytest.approx(1, rel=0.05)


def test_zero_out_init_starts_with_silent_branches():
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(init=ZeroOutInit()), DIMS, 50)
    tokens = torch.randint(50, (2, 7))
    out = net(tokens, Context(Visibility.rows(tokens)))
    assert torch.equal(out, net.close(net.embed(tokens)) @ net.embed.weight.T)
    assert net.layers[0].mixer.qkv_proj.weight.any()
