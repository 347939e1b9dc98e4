"""Reading config.json: what we do not have is named with its value; no input ends in a traceback."""

import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.registry import FAMILIES, family_of, fitting, read_model
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.positions import Learned, NoPositions, Rotary
from lit_small_lm.nn.residual import PostNorm, PreNorm
from lit_small_lm.nn.rotary_scaling import Llama3Scaling, YarnScaling
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.shapes import FixedShape

SHAPE = FixedShape(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, hidden=32)
JUNK = (None, True, -1, 0, 3.7, "x", "", [], {}, [1, 2], ["x"], {"x": 1}, math.nan, math.inf, 10**30, 10**5000, 1e-320)
ROPE = {"rope_scaling": None, "rope_parameters": None, "rope_theta": 1e4, "is_causal": True}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ([], "config.json: not an object"),
        ({}, "model_type: None; allowed: one of bert, deepseek_v3, dhara"),
        ({"model_type": 3}, "model_type: 3; allowed"),
        ({"model_type": "lama"}, "model_type: 'lama' is not a known name; .*did you mean llama?"),
        ({"model_type": "gemma3"}, "did you mean gemma3_text?"),
        ({"model_type": "llama", "hidden_act": "gelu_fast"}, "hidden_act: 'gelu_fast' .*did you mean gelu?"),
        ({"model_type": "llama", "num_hidden_layers": "2"}, 'num_hidden_layers: "2"; allowed: a whole number'),
        ({"model_type": "llama", "num_hidden_layers": 2.0}, "num_hidden_layers: 2.0; allowed: a whole number"),
        ({"model_type": "llama", "rms_norm_eps": math.nan}, "rms_norm_eps: NaN; allowed: a number, above 0"),
        ({"model_type": "llama", "attention_bias": 1}, "attention_bias: 1; allowed: true, false"),
        ({"model_type": "llama", "num_attention_heads": 10**5000}, "num_attention_heads: a number of thousands"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "num_key_value_heads: 5; allowed: a divisor of num_att"),
        ({"model_type": "llama", "num_attention_heads": 3, "head_dim": 8}, "num_attention_heads: 3; allowed: a div"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type: 'dynamic'"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "rope_scaling: factor: null; allowed: a number"),
        ({"model_type": "llama", "rope_scaling": [2]}, r"rope_scaling: \[2\]; allowed: an object"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5; allowed: 1"),
        ({"model_type": "llama", "per_layer_config": {"1": {}}}, "per_layer_config: .*; allowed: null"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights: false; allowed: true"),
        ({"model_type": "gpt2", "n_embd": 100}, "n_head: 12; allowed: a divisor of n_embd, 100"),
        ({"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv: 8.0; allowed: null"),
        ({"model_type": "olmoe", "head_dim": 64}, "head_dim: 64; allowed: hidden_size / num_attention_heads"),
        ({"model_type": "lfm2", "conv_bias": True}, "conv_bias: true; allowed: false"),
        ({"model_type": "lfm2", "layer_types": ["conv"] * 31 + ["cnov"]}, r"layer_types\[31\]: 'cnov' .*mean conv?"),
        ({"model_type": "lfm2", "layer_types": ["conv"]}, r'layer_types: \["conv"\]; allowed: a list of 32 values'),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 32}, "layer_types: .*use_sliding_window"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0; allowed: null"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}}, "rope_parameters: 'rope_theta'"),
        ({"model_type": "gemma3_text", "rope_scaling": {"type": "yarn", "factor": 4.0}}, "YaRN with attention_factor"),
        ({"model_type": "gpt_neox", "rope_scaling": {"type": "yarn", "factor": 4.0}}, "YaRN with attention_factor 1"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise: 0.1; allowed: 0.0"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok: 9; .*at most 8"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1.5]}, r"mlp_only_layers: \[1.5\]; allowed: a list"),
        ({"model_type": "deepseek_v3", "n_group": 7}, "n_group: 7; allowed: a divisor of n_routed_experts, 256"),
        ({"model_type": "deepseek_v3", "num_key_value_heads": 64}, "num_key_value_heads: 64; allowed: num_attention"),
        ({"model_type": "deepseek_v3", "rope_scaling": {"type": "yarn", "factor": 40}}, "YaRN with mscale equal"),
        ({"model_type": "dhara", "canon_set": "AE"}, "hidden_size: null; allowed: a whole number"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder: true; allowed: false"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(config, says):
    with pytest.raises(RequestError, match=says) as error:
        read_model(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_junk_in_any_field_is_a_model_or_a_request_error(family):
    base = {"model_type": family.model_type}
    if family.model_type == "dhara":
        base |= {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}
        base |= {"intermediate_size": 8}
    keys, refused = {**family.defaults, **family.fixed, **ROPE}, 0
    for key in keys:
        for junk in JUNK:
            try:
                assert isinstance(read_model({**base, key: junk}), Model)
            except RequestError as error:
                refused += 1
                assert key in str(error) or key in ("n_head", "rope_parameters", "rope_scaling"), str(error)[:200]
    assert refused > 8 * len(keys)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_junk_in_rotary_parameters(kind):
    good = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    good |= {"original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "truncate": True}
    assert isinstance(read_model({"model_type": "llama", "rope_parameters": good}), Model)
    refused = 0
    for key in good:
        for junk in JUNK:
            try:
                read_model({"model_type": "llama", "rope_parameters": {**good, key: junk}})
            except RequestError as error:
                refused += 1
                assert "rope_parameters" in str(error)
    assert refused > 30


def test_a_head_that_cannot_be_rotated_is_refused_when_built():
    model = read_model({"model_type": "llama", "hidden_size": 24, "num_attention_heads": 4, "head_dim": 5})
    with pytest.raises(RequestError, match="head_dim 5 rotates 5 channels"), torch.device("meta"):
        Backbone(model.backbone, model.shape.resolve(), 9)


def test_older_and_newer_spellings_are_the_same():
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert read_model({"model_type": "llama", **older}) == read_model({"model_type": "llama", **newer})
    experts = {"num_local_experts": 16}, {"num_experts": 16}
    for name in ("mixtral", "qwen3_moe", "olmoe"):
        first, second = (read_model({"model_type": name, **given}) for given in experts)
        assert first == second and first.backbone.layer.ffn.n_experts == 16


def test_the_length_of_llama3_scaling_may_stand_outside():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for extra, length in (
        ({}, 2048),
        ({"max_position_embeddings": 99}, 99),
        ({"original_max_position_embeddings": 7}, 7),
    ):
        model = read_model({"model_type": "llama", "rope_scaling": scaling, **extra})
        assert model.backbone.positions.scaling == Llama3Scaling(original_length=length)


def test_yarn_s_temperature_becomes_the_scale_of_the_scores():
    given = {"rope_type": "yarn", "factor": math.e**10, "original_max_position_embeddings": 64}
    plain = read_model({"model_type": "llama", "rope_scaling": given}).backbone
    assert plain.layer.mixer.scale == pytest.approx(4 / math.sqrt(128))  # (1 + 0.1 ln factor)^2 = 2^2
    fixed = read_model({"model_type": "llama", "rope_scaling": {**given, "attention_factor": 1.0}}).backbone
    assert fixed.layer.mixer.scale is None
    assert isinstance(fixed.positions.scaling, YarnScaling)


def test_what_masked_diffusion_models_record():
    model = read_model(
        {"model_type": "dhara", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
        | {"intermediate_size": 8, "mask_token_id": 5, "canon_set": "CA"}
    )
    assert (model.mask_id, model.bidirectional, model.backbone.canon_at, model.backbone.head) == (5, True, "AC", "tied")


MIXTURE = LayerSpec(ffn=MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=2, normalise="chosen"), n_experts=4))
FITTING = {
    "llama": BackboneSpec(),
    "gpt2": BackboneSpec(
        norm=PreNorm(norm=LayerNorm()), layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
        positions=Learned(length=64),
    ),
    "mistral": BackboneSpec(layer=LayerSpec(mixer=Attention(window=8))),
    "qwen2": BackboneSpec(layer=LayerSpec(mixer=Attention(shift="qkv"))),
    "qwen3": BackboneSpec(layer=LayerSpec(mixer=Attention(qk_norm=RMSNorm()))),
    "smollm3": BackboneSpec(positions=NoPositions()),
    "mixtral": BackboneSpec(layer=MIXTURE),
    "lfm2": BackboneSpec(
        layer=LayerSpec(mixer=Attention(qk_norm=RMSNorm())), more_layers={"conv": LayerSpec(mixer=ShortConv())},
        pattern=("conv", "layer"),
    ),
    "gpt_neox": BackboneSpec(
        norm=PreNorm(norm=LayerNorm()), layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
        positions=Rotary(share=0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FITTING)
def test_the_class_that_expresses_a_backbone_is_found(name):
    shape = SHAPE if name != "gpt2" and name != "gpt_neox" else FixedShape(dim=32, n_layers=2, n_heads=4, hidden=32)
    family, config = fitting(FITTING[name], shape, 31)
    assert family.model_type == name
    assert family_of(config) is family


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        (BackboneSpec(canon_at="AC"), "LlamaForCausalLM has no layer 0.canon_at 'AC'"),
        (BackboneSpec(norm=PostNorm()), "norm PostNorm is not PreNorm"),
        (BackboneSpec(norm=PeriNorm(), embedding_scale="sqrt_dim"), "Gemma3ForCausalLM has no norm.norm.gain 'w'"),
        (BackboneSpec(logit_softcap=30.0), "LlamaForCausalLM has no logit_softcap 30.0"),
        (BackboneSpec(layer=LayerSpec(mixer=Attention(scale=0.1), ffn=GatedMLP(shift="bias"))), "mixer.scale 0.1"),
    ],
)
def test_what_no_class_has_is_said_of_the_nearest(backbone, says):
    with pytest.raises(Unfit, match=says):
        fitting(backbone, SHAPE, 31)
