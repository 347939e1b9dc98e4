"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and all that took its shape: SmolLM2, DeepSeek-LLM, ..."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.decoder import COMMON, Decoder, part
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.plugin import Dims
from lit_small_lm.shapes import FixedShape


class Llama(Decoder):
    """`LlamaForCausalLM`: all projections may have biases, those of attention apart from those of the MLP."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    defaults = {
        **COMMON,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
    }

    def shape(self, s: Settings) -> FixedShape:
        shape = super().shape(s)
        if shape.dim % shape.n_heads:  # the public class refuses it, even where head_dim is given
            raise s.refused("num_attention_heads", f"a divisor of hidden_size, {shape.dim}")
        return shape

    def ffn(self, s: Settings, dims: Dims) -> GatedMLP:
        return dataclasses.replace(super().ffn(s, dims), shift="bias" if s.flag("mlp_bias") else "none")

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        biased = part(kinds[0].ffn, GatedMLP, "ffn").shift == "bias"
        return {**super().ffn_config(model, kinds), "mlp_bias": biased}
