"""LFM2 (arXiv 2511.23404): gated short convolutions, and attention with norms on queries and keys every few layers."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import COMMON, Decoder, part
from lit_small_lm.hf.names import Entry, Fused, Grouped, Taps
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.rope import read_rope
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import FFN, Dims, Mixer

TYPES = {"conv": "conv", "full_attention": "layer"}
ALIASES = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
"""Names of older files, which the public class prefers."""


class LFM2(Decoder):
    """`Lfm2ForCausalLM`; the hidden width in its files is shrunk to two thirds unless they say otherwise."""

    model_type = "lfm2"
    architecture = "Lfm2ForCausalLM"
    theta = 1e6
    norms = {"mixer_path.norm": "operator_norm", "ffn_path.norm": "ffn_norm"}
    last_norm = "model.embedding_norm"
    eps = "norm_eps"
    defaults = {
        **{key: COMMON[key] for key in ("initializer_range", "is_causal")},
        "vocab_size": 65536,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "full_attn_idxs": None,
        "layer_types": None,
    }
    fixed = {"conv_bias": False}

    def model(self, s: Settings) -> Model:
        renamed = {new: s.given[old] for old, new in ALIASES.items() if old in s.given}
        return super().model(Settings({**s.given, **renamed}, s.defaults, s.where))

    def hidden(self, s: Settings) -> int:
        hidden = super().hidden(s)
        if not s.flag("block_auto_adjust_ff_dim"):
            return hidden
        hidden = int(2 * hidden / 3)
        if s.value("block_ffn_dim_multiplier") is None:
            return hidden
        multiple = s.whole("block_multiple_of")
        return -(-int(s.number("block_ffn_dim_multiplier", above=0, high=1024) * hidden) // multiple) * multiple

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return Attention(qk_norm=self.norm(s), scale=read_rope(s, self.theta).scale(dims.head_dim))

    def ffn(self, s: Settings, dims: Dims) -> FFN:
        return GatedMLP()

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        attention = LayerSpec(mixer=self.mixer(s, dims), ffn=self.ffn(s, dims))
        convolution = dataclasses.replace(attention, mixer=ShortConv(kernel=s.whole("conv_L_cache")))
        return self.kinds(s, dims.n_layers), {"layer": attention, "conv": convolution}

    def kinds(self, s: Settings, depth: int) -> list[str]:
        """The kind of each layer: listed, or attention at the places of `full_attn_idxs`, which are all by default."""
        if s.value("layer_types") is not None:
            return s.each("layer_types", TYPES, depth)
        places = s.value("full_attn_idxs")
        if places is None:
            return ["layer"] * depth
        if not isinstance(places, list) or not all(type(place) is int and 0 <= place < depth for place in places):
            raise s.refused("full_attn_idxs", f"a list of numbers of layers, below {depth}")
        return ["layer" if layer in set(places) else "conv" for layer in range(depth)]

    def mixer_names(self, ours: str, theirs: str, mixer: Mixer, dims: Dims) -> list[Entry]:
        if isinstance(mixer, Attention):
            norms = ("q_layernorm", "k_layernorm")
            return entries.attention(f"{ours}.mixer", f"{theirs}.self_attn", mixer, dims, "out_proj", norms)
        fused = Fused((dims.dim,) * 3, Grouped(dims.groups_of(dims.dim), (1, 1, 1)))
        found = entries.linear(f"{ours}.mixer.in_proj", (f"{theirs}.conv.in_proj",), False, fused)
        found += entries.linear(f"{ours}.mixer.sum", (f"{theirs}.conv.conv",), False, Taps())
        return found + entries.linear(f"{ours}.mixer.o_proj", (f"{theirs}.conv.out_proj",), False)

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        spec, names = part(ffn, GatedMLP, "ffn"), ("w1", "w3", "w2")
        return entries.gated(f"{ours}.ffn", f"{theirs}.feed_forward", spec, dims.groups_of(dims.hidden), names)

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        types = ["conv" if isinstance(kind.mixer, ShortConv) else "full_attention" for kind in kinds]
        if "full_attention" not in types:  # its cache asks the attention how long the text is
            raise Unfit(f"{self.architecture}: no layer is Attention")
        kernels = [kind.mixer.kernel for kind in kinds if isinstance(kind.mixer, ShortConv)]
        return {"layer_types": types, "conv_L_cache": kernels[0] if kernels else self.defaults["conv_L_cache"]}

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        return {"block_auto_adjust_ff_dim": False}
