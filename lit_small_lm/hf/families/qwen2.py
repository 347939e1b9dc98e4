"""Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama's layer with biases on queries, keys and values."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.decoder import COMMON, Decoder
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import Settings
from lit_small_lm.hf.windows import window_config, window_of, windowed_layers
from lit_small_lm.nn.attention import Attention
from lit_small_lm.plugin import Dims


class Qwen2(Decoder):
    """`Qwen2ForCausalLM`: the upper layers may have a window."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    defaults = {
        **COMMON,
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    }

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return dataclasses.replace(super().mixer(s, dims), shift="qkv")

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        _, kinds = super().layers(s, dims)
        windowed = windowed_layers(s, dims.n_layers)
        if any(windowed):
            mixer = dataclasses.replace(kinds["layer"].mixer, window=window_of(s))
            kinds["sliding"] = dataclasses.replace(kinds["layer"], mixer=mixer)
        return ["sliding" if window else "layer" for window in windowed], kinds

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        return {**super().mixer_config(model, kinds), **window_config(kinds, model.bidirectional)}
