"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): both branches read the same stream, a part of each head turns.

Its fused projection holds, head by head, queries, keys and values, as ours does.
"""

import dataclasses
from typing import Any

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import COMMON, FOREIGN, Decoder, part
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.rope import Rope, read_rope
from lit_small_lm.hf.settings import ACTIVATION_NAMES, Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import FFN, Dims, Mixer, Norm
from lit_small_lm.shapes import FixedShape


class GPTNeoX(Decoder):
    """`GPTNeoXForCausalLM`."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    derived = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    embedding, head = "gpt_neox.embed_in", "embed_out"
    last_norm = "gpt_neox.final_layer_norm"
    eps = "layer_norm_eps"
    defaults = {
        **COMMON,
        "vocab_size": 50432,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "hidden_dropout": 0.0,
        "use_parallel_residual": True,
        "attention_bias": True,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
    }

    def shape(self, s: Settings) -> FixedShape:
        shape = super().shape(s)
        if shape.n_heads * shape.head_dim != shape.dim:
            raise s.refused("num_attention_heads", f"a divisor of hidden_size, {shape.dim}")
        return shape

    def kv_heads(self, s: Settings, n_heads: int) -> int:
        return n_heads

    def norm(self, s: Settings) -> Norm:
        return LayerNorm(eps=s.number("layer_norm_eps", above=0))

    def rope(self, s: Settings) -> Rope:
        """Rotary positions, whose temperature would have to reach the whole head."""
        base, share = s.number("rotary_emb_base", above=0), s.number("rotary_pct", above=0, high=1)
        rope = read_rope(s, base, share)
        if rope.amplitude != 1 and rope.positions.share != 1:
            raise s.refused("rope_scaling", "YaRN with attention_factor 1, since a part of each head is not rotated")
        return rope

    def positions(self, s: Settings) -> Rotary:
        return self.rope(s).positions

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return Attention(
            shift="bias" if s.flag("attention_bias") else "none",
            scale=self.rope(s).scale(dims.head_dim),
            dropout=s.number("hidden_dropout", low=0, below=1),
            attention_dropout=s.number("attention_dropout", low=0, below=1),
        )

    def ffn(self, s: Settings, dims: Dims) -> FFN:
        dropout = s.number("hidden_dropout", low=0, below=1)
        return MLP(activation=s.activation("hidden_act"), shift="bias", dropout=dropout)

    def finished(self, s: Settings, backbone: BackboneSpec) -> BackboneSpec:
        scheme = ParallelNorm if s.flag("use_parallel_residual") else PreNorm
        dropout = s.number("hidden_dropout", low=0, below=1)
        return dataclasses.replace(backbone, norm=scheme(norm=self.norm(s)), embedding_dropout=dropout)

    # ---------------------------------------------------------------------------------------------------------- names
    def closing(self, backbone: BackboneSpec) -> str:
        return "close.norm" if isinstance(backbone.norm, ParallelNorm) else "close"

    def mixer_names(self, ours: str, theirs: str, mixer: Mixer, dims: Dims) -> list[Entry]:
        bias = part(mixer, Attention, "mixer").shift == "bias"
        found = entries.linear(f"{ours}.mixer.qkv_proj", (f"{theirs}.attention.query_key_value",), bias)
        return found + entries.linear(f"{ours}.mixer.o_proj", (f"{theirs}.attention.dense",), bias)

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        names = ("dense_h_to_4h", "dense_4h_to_h")
        return entries.plain(f"{ours}.ffn", f"{theirs}.mlp", part(ffn, MLP, "ffn"), names)

    # -------------------------------------------------------------------------------------------------------- writing
    def eps_of(self, backbone: BackboneSpec) -> float:
        return part(backbone.norm.norm, LayerNorm, "norm.norm").eps

    def config(self, model: Model) -> dict[str, Any]:
        if not isinstance(model.backbone.norm, (ParallelNorm, PreNorm)):
            raise Unfit(f"norm {type(model.backbone.norm).__name__} is neither ParallelNorm nor PreNorm", FOREIGN)
        parallel = isinstance(model.backbone.norm, ParallelNorm)
        return {**super().config(model), "use_parallel_residual": parallel}

    def positions_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        found = super().positions_config(model, kinds)
        share = part(kinds[0].positions, Rotary, "positions").share
        return {"rotary_emb_base": found["rope_theta"], "rotary_pct": share, "rope_scaling": found["rope_scaling"]}

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        mixer = part(kinds[0].mixer, Attention, "mixer")
        return {"attention_dropout": mixer.attention_dropout, "attention_bias": mixer.shift == "bias"}

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        ffn = part(kinds[0].ffn, MLP, "ffn")
        return {"hidden_act": ACTIVATION_NAMES[ffn.activation], "hidden_dropout": ffn.dropout}
