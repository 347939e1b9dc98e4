"""Gemma 3, text (arXiv 2503.19786): five layers with a window and a rotary base of their own, then one without.

Norms on both sides of every branch with gains 1 + w, also on queries and keys; embeddings times the square root of
their width; scores scaled by a number of their own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.errors import not_known
from lit_small_lm.hf.decoder import COMMON, part
from lit_small_lm.hf.families.llama import Llama
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.rope import read_rope, write_rope
from lit_small_lm.hf.settings import ACTIVATION_NAMES, Settings
from lit_small_lm.hf.windows import TYPES, layer_types, window_in
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.plugin import Dims, Norm, NormScheme

LOCAL_THETA = 10000.0


class Gemma3(Llama):
    """`Gemma3ForCausalLM`; where attention looks both ways, a window reaches half of `sliding_window` to each side."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    theta = 1e6
    norms = {
        "mixer_path.before": "input_layernorm",
        "mixer_path.after": "post_attention_layernorm",
        "ffn_path.before": "pre_feedforward_layernorm",
        "ffn_path.after": "post_feedforward_layernorm",
    }
    defaults = {
        **{key: value for key, value in COMMON.items() if key != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "layer_types": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "rope_parameters": None,
        "rope_local_base_freq": LOCAL_THETA,
    }
    fixed = {"attn_logit_softcapping": None, "is_causal": True}

    def norm(self, s: Settings) -> Norm:
        return RMSNorm(eps=s.number("rms_norm_eps", above=0), gain="1+w")

    def scheme(self, norm: Norm) -> NormScheme:
        return PeriNorm(norm=norm)

    def both_ways(self, s: Settings) -> bool:
        return s.choice("use_bidirectional_attention", {True: True, False: False, None: False})

    def objects(self, s: Settings, key: str) -> Mapping[str, Any]:
        """The object under a key; nothing if it is not there."""
        found = s.given.get(key) or {}
        if not isinstance(found, Mapping):
            raise s.refused(key, "an object")
        return found

    def rope(self, s: Settings, kind: str) -> Rotary:
        """The rotary positions of one kind of layer."""
        given = self.objects(s, "rope_parameters")
        for name in given:
            if name not in TYPES:
                raise not_known(f"{s.where}: rope_parameters", name, TYPES)
        own = self.objects(Settings(given, {}, f"{s.where}: rope_parameters"), kind)
        if kind == "full_attention":
            rope = read_rope(s, self.theta, given={**own, **self.objects(s, "rope_scaling")})
        else:
            base = s.number("rope_local_base_freq", above=0)
            local = {key: value for key, value in s.given.items() if key != "rope_theta"}
            rope = read_rope(Settings(local, s.defaults, s.where), base, given=own)
        if rope.amplitude != 1:
            raise s.refused("rope_scaling", "YaRN with attention_factor 1, since scores have a scale of their own")
        return rope.positions

    def positions(self, s: Settings) -> Rotary:
        return self.rope(s, "sliding_attention")

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        scalar = s.whole("query_pre_attn_scalar")
        return Attention(
            shift="bias" if s.flag("attention_bias") else "none",
            window=s.whole("sliding_window") // 2 + 1 if self.both_ways(s) else s.whole("sliding_window"),
            scale=None if scalar == dims.head_dim else scalar**-0.5,
            qk_norm=self.norm(s),
            attention_dropout=s.number("attention_dropout", low=0, below=1),
        )

    def ffn(self, s: Settings, dims: Dims) -> GatedMLP:
        return GatedMLP(activation=s.activation("hidden_activation"))

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        local = LayerSpec(mixer=self.mixer(s, dims), ffn=self.ffn(s, dims))
        whole = dataclasses.replace(local.mixer, window=None)
        everywhere = LayerSpec(mixer=whole, ffn=local.ffn, positions=self.rope(s, "full_attention"))
        if s.value("layer_types") is None:
            pattern = s.whole("sliding_window_pattern")
            windowed = [(layer + 1) % pattern != 0 for layer in range(dims.n_layers)]
        else:
            windowed = s.each("layer_types", TYPES, dims.n_layers)
        return ["layer" if local else "global" for local in windowed], {"layer": local, "global": everywhere}

    def finished(self, s: Settings, backbone: BackboneSpec) -> BackboneSpec:
        cap = s.value("final_logit_softcapping")
        softcap = None if cap is None else s.number("final_logit_softcapping", above=0)
        return dataclasses.replace(backbone, embedding_scale="sqrt_dim", logit_softcap=softcap)

    # -------------------------------------------------------------------------------------------------------- writing
    def positions_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, name in zip(kinds, layer_types(kinds), strict=True):
            theta, scaling = write_rope(part(kind.positions, Rotary, "positions")).values()
            found[name] = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
        return {"rope_parameters": found}

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        mixer = part(kinds[0].mixer, Attention, "mixer")
        scalar = model.shape.resolve().head_dim if mixer.scale is None else round(mixer.scale**-2)
        window = window_in(kinds, False)
        if window is None:
            window = self.defaults["sliding_window"]
        elif model.bidirectional:
            window = 2 * (window - 1)
        return {
            "attention_bias": mixer.shift == "bias",
            "attention_dropout": mixer.attention_dropout,
            "query_pre_attn_scalar": scalar,
            "sliding_window": window,
            "layer_types": layer_types(kinds),
            "use_bidirectional_attention": model.bidirectional,
            "final_logit_softcapping": model.backbone.logit_softcap,
        }

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        return {"hidden_activation": ACTIVATION_NAMES[part(kinds[0].ffn, GatedMLP, "ffn").activation]}
