"""Families and shapes that do not go together: found before anything is built, in one line that names both values."""

import dataclasses
import warnings

import pytest

from lit_small_lm.backbone import BackboneSpec, LayerSpec, check_fit
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.positions import Learned, Rotary
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import Dims
from lit_small_lm.shapes import FixedShape

CONV = LayerSpec(mixer=ShortConv())
MOE = BackboneSpec(layer=LayerSpec(ffn=MoE(expert=MLP(), router=SoftmaxRouter(top_k=3), n_experts=2)))
LOCAL = LayerSpec(mixer=Attention(window=8))


def dims(**changed):
    return FixedShape(**{"dim": 16, "n_layers": 4, "n_heads": 2, "hidden": 24, **changed}).resolve()


def warned(spec, shape):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_fit(spec, shape)
    return [str(warning.message) for warning in caught]


def test_the_network_has_no_storage():
    net = check_fit(BackboneSpec(), Dims(2**16, 3, 2**9, 2**9, 2**7, 2**18))
    assert len(net.layers) == 3
    assert all(parameter.is_meta for parameter in net.parameters())


@pytest.mark.parametrize(
    ("spec", "shape", "says"),
    [
        (BackboneSpec(), dims(head_dim=5), "positions.share 1.0 of head_dim 5 rotates 5 channels; allowed: even"),
        (
            BackboneSpec(positions=Rotary(share=0.25)),
            dims(head_dim=12),
            "positions.share 0.25 of head_dim 12 rotates 3 channels; allowed: even",
        ),
        (BackboneSpec(positions=Rotary(share=0.1)), dims(), "positions.share 0.1 of head_dim 8 rotates 0 channels"),
        (
            BackboneSpec(pattern=("layer", "odd"), more_layers={"odd": LayerSpec(positions=Rotary(share=0.4))}),
            dims(),
            "positions.share 0.4 of head_dim 8 rotates 3 channels",
        ),
        (BackboneSpec(layer=LayerSpec(positions=Learned())), dims(), "layer.positions: Learned adds to the embedding"),
        (MOE, dims(), "ffn.router.top_k: 3; allowed: at most n_experts 2"),
        (
            dataclasses.replace(MOE, layer=LayerSpec(ffn=MoE(expert=MLP(), router=SoftmaxRouter())), canon_at="AD"),
            dims(),
            "canon_at: D has no place in a layer of Attention with MoE",
        ),
        (
            BackboneSpec(layer=LayerSpec(mixer=MLA(rope_dim=5))),
            dims(),
            "positions.share 1.0 of head_dim 5 rotates 5 channels; allowed: even",
        ),
        (BackboneSpec(canon_at="E"), dims(), "canon_at: 'E'; allowed: letters of ABCD, each at most once"),
        (BackboneSpec(pattern=("layer", "global")), dims(), "backbone.pattern: 'global' is not a known kind of layer"),
        (BackboneSpec(first=("dense",)), dims(), "backbone.first: 'dense' is not a known kind of layer; known: layer"),
    ],
)
def test_unsuitable(spec, shape, says):
    with pytest.raises(RequestError) as refused:
        check_fit(spec, shape)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"n_heads": 3}, "dim 16 is not divisible by n_heads 3 (remainder 1)"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3 (remainder 1)"),
        ({"n_heads": 2, "n_kv_heads": 4}, "n_heads 2 is not a multiple of n_kv_heads 4"),
    ],
)
def test_widths_that_do_not_go_together(shape, says):
    with pytest.raises(RequestError) as refused:
        dims(**shape)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "depth", "missing"),
    [
        (BackboneSpec(more_layers={"local": LOCAL}, pattern=("local",) * 5 + ("layer",)), 4, ["layer 6", "'layer'"]),
        (BackboneSpec(more_layers={"conv": CONV}, first=("conv",) * 4), 4, ["layer 5", "'layer'"]),
        (BackboneSpec(more_layers={"conv": CONV}, first=("layer", "layer", "conv")), 2, ["layer 3", "'conv'"]),
    ],
    ids=["pattern", "all first", "cut first"],
)
def test_a_network_that_ends_before_a_kind_of_layer(spec, depth, missing):
    (text,) = warned(spec, dims(n_layers=depth))
    assert text == (
        f"backbone.pattern: {missing[0]} is the first of kind {missing[1]}; shape.n_layers: {depth}, "
        "so there are none of them"
    )


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec(),
        BackboneSpec(more_layers={"local": LOCAL}, pattern=("local", "local", "local", "layer")),
        BackboneSpec(more_layers={"conv": CONV}, first=("conv", "conv", "conv")),
        BackboneSpec(layer=LayerSpec(mixer=Attention(window=10_000), ffn=MLP(shift="bias")), canon_at="ABCD"),
    ],
)
def test_nothing_to_warn_of(spec):
    assert warned(spec, dims()) == []
