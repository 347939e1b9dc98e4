"""Mistral 7B (arXiv 2310.06825): Llama's layer with a window that every layer looks back over."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.decoder import COMMON, Decoder
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import Settings
from lit_small_lm.hf.windows import window_in, window_of
from lit_small_lm.nn.attention import Attention
from lit_small_lm.plugin import Dims


class Mistral(Decoder):
    """`MistralForCausalLM`."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    defaults = {
        **COMMON,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
    }

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return dataclasses.replace(super().mixer(s, dims), window=window_of(s))

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        return {**super().mixer_config(model, kinds), "sliding_window": window_in(kinds, model.bidirectional)}
