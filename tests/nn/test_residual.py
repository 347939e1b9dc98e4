"""Norm schemes: what each hands to a branch, and what it keeps."""

import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.init import NormalInit, ScaledInit
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.pointwise_norms import DyT
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm
from lit_small_lm.plugin import Dims, Site
from lit_small_lm.shapes import FixedShape

NORMS = [RMSNorm(), LayerNorm()]


def network(norm, n_layers, **spec):
    torch.manual_seed(0)
    shape = FixedShape(dim=16, n_layers=n_layers, n_heads=2, hidden=24)
    return Backbone(BackboneSpec(norm=norm, **spec), shape.resolve(), 31)


def logits(net):
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    return net(tokens, Context(Visibility.rows(tokens)))


def branch_input(scheme, layer, place, x):
    """What a scheme hands to the branch at a layer and place, and what it makes of a branch that returns zeros."""
    net, seen = network(scheme, 9), []

    def branch(h):
        seen.append(h)
        return torch.zeros_like(h)

    path = net.layers[layer].mixer_path if place == "mixer" else net.layers[layer].ffn_path
    return path(x, branch), seen[0]


@pytest.mark.parametrize("norm", NORMS, ids=["RMSNorm", "LayerNorm"])
def test_layer_norm_scaling_of_one_layer_is_pre_norm(norm):
    pre, scaled = network(PreNorm(norm=norm), 1), network(LayerNormScaling(norm=norm), 1)
    assert torch.equal(logits(scaled), logits(pre))


@pytest.mark.parametrize("norm", NORMS, ids=["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("place", ["mixer", "ffn"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 8])
def test_layer_norm_scaling_divides_branch_inputs_by_the_root_of_the_layer_number(layer, place, norm):
    x = torch.randn(2, 5, 16)
    kept, wanted = branch_input(PreNorm(norm=norm), layer, place, x)
    also_kept, found = branch_input(LayerNormScaling(norm=norm), layer, place, x)
    assert torch.equal(kept, x)
    assert torch.equal(also_kept, x)
    torch.testing.assert_close(found, wanted / math.sqrt(layer + 1), rtol=1e-6, atol=0)  # float32: one rounding


def test_layer_norm_scaling_differs_from_pre_norm_in_two_layers():
    assert not torch.allclose(logits(network(LayerNormScaling(), 2)), logits(network(PreNorm(), 2)))


@pytest.mark.parametrize("norm", NORMS, ids=["RMSNorm", "LayerNorm"])
def test_the_final_norm_is_not_scaled(norm):
    x = torch.randn(2, 5, 16)
    pre, scaled = network(PreNorm(norm=norm), 9), network(LayerNormScaling(norm=norm), 9)
    assert torch.equal(scaled.close(x), pre.close(x))


@pytest.mark.parametrize("n_layers", range(1, 100, 7))
def test_the_default_factor_is_one_over_the_root_of_the_layer_number(n_layers):
    site = Site(Dims(16, n_layers, 2, 2, 8, 24), n_layers - 1, place="ffn")
    assert LayerNormScaling().factor(site) == pytest.approx(1 / math.sqrt(n_layers), rel=1e-15)


@pytest.mark.parametrize("norm", [*NORMS, RMSNorm(gain="1+w"), DyT()], ids=lambda norm: type(norm).__name__)
def test_factor_and_gain_agree_at_the_start(norm):
    """A gain that starts at the factor is the same function, with the usual norms bit for bit."""
    init = NormalInit(std_dev=0.3)
    fixed, free = (network(LayerNormScaling(norm=norm, factor_on=place), 5, init=init) for place in ("norm", "gain"))
    torch.testing.assert_close(logits(free), logits(fixed), rtol=1e-5, atol=1e-5)
    assert norm not in NORMS or torch.equal(logits(free), logits(fixed))
    assert not torch.allclose(logits(free), logits(network(PreNorm(norm=norm), 5, init=init)), rtol=0.1, atol=0.1)


def test_a_gain_starts_at_the_factor_and_the_final_norm_at_one():
    net = network(LayerNormScaling(factor_on="gain", index="branch", power=1.0), 3)
    starts = [path.norm.weight.unique() for layer in net.layers for path in (layer.mixer_path, layer.ffn_path)]
    assert torch.equal(torch.cat(starts), 1 / torch.arange(1.0, 7.0))
    assert (net.close.weight == 1).all()


@pytest.mark.parametrize("norm", [RMSNorm(gain="none"), LayerNorm(gain="none")], ids=["RMSNorm", "LayerNorm"])
def test_a_norm_without_gain_cannot_start_at_the_factor(norm):
    with pytest.raises(RequestError, match="gain: none, where a gain has to start at 1"):
        network(LayerNormScaling(norm=norm, factor_on="gain"), 3)


@pytest.mark.parametrize(("index", "number"), [("layer", {"mixer": 5, "ffn": 5}), ("branch", {"mixer": 9, "ffn": 10})])
@pytest.mark.parametrize("place", ["mixer", "ffn"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_factor_counts_layers_or_branches_to_a_power(power, place, index, number):
    x = torch.randn(2, 5, 16)
    _, wanted = branch_input(PreNorm(), 4, place, x)
    _, found = branch_input(LayerNormScaling(index=index, power=power), 4, place, x)
    torch.testing.assert_close(found, wanted / number[place] ** power, rtol=1e-6, atol=0)


def test_the_factor_may_stand_after_the_branch():
    x, path = torch.randn(2, 5, 16), network(LayerNormScaling(factor_on="branch"), 4).layers[3].mixer_path
    found = path(x, lambda h: h.square())
    torch.testing.assert_close(found, x + path.norm(x).square() / 2, rtol=1e-6, atol=1e-6)


def test_the_factor_is_no_tensor():
    assert list(network(LayerNormScaling(), 3).state_dict()) == list(network(PreNorm(), 3).state_dict())


def test_the_factor_stays_with_its_layer():
    """Pruning a layer must not rescale those after it: the factor belongs to the layer, not to its place."""
    net, x = network(LayerNormScaling(), 3), torch.randn(1, 2, 16)
    last = net.layers[2]
    del net.layers[0]
    seen = []
    net.layers[1].mixer_path(x, lambda h: seen.append(h) or h)
    assert net.layers[1] is last
    torch.testing.assert_close(seen[0], last.mixer_path.norm(x) / math.sqrt(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_layers", [1, 6])
def test_post_norm_keeps_the_stream_at_variance_one(n_layers):
    net, out = network(PostNorm(norm=LayerNorm(eps=1e-12)), n_layers), []
    for layer in net.layers:
        layer.register_forward_hook(lambda module, args, x: out.append(x))
    logits(net)
    assert len(out) == n_layers
    for x in out:
        variance = x.var(-1, unbiased=False)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-5, atol=0)
        torch.testing.assert_close(x.mean(-1), torch.zeros_like(variance), rtol=0, atol=1e-5)


def test_post_norm_has_no_norm_beside_the_branches():
    pre, post = (sum("norm" in p.role for p in network(scheme, 3).named_roles()) for scheme in (PreNorm(), PostNorm()))
    assert (pre, post) == (7, 6)


def test_post_norm_declares_its_need_of_warm_up():
    assert [concern.about for concern in PostNorm.requires] == ["warmup"]


def test_layer_norm_scaling_warns_of_scaled_init():
    spec = BackboneSpec(norm=LayerNormScaling(), init=ScaledInit())
    with pytest.warns(
        UserWarning, match="LayerNormScaling with backbone.init ScaledInit: .*worse than LayerNorm Scaling"
    ):
        spec.report_concerns()
