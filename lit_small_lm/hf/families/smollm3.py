"""SmolLM3 (huggingface.co/blog/smollm3): Llama's layer, but every fourth one knows no positions (arXiv 2501.18795)."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.decoder import COMMON, part
from lit_small_lm.hf.families.llama import Llama
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import Settings
from lit_small_lm.hf.windows import TYPES, window_config, window_of
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.positions import NoPositions
from lit_small_lm.plugin import Dims
from lit_small_lm.shapes import FixedShape


class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`: layers without rotary positions may have a window."""

    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    theta = 2e6
    defaults = {
        **COMMON,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
    }

    def shape(self, s: Settings) -> FixedShape:
        return super(Llama, self).shape(s)

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        _, kinds = super().layers(s, dims)
        plain = kinds["layer"]
        windowed = dataclasses.replace(plain, mixer=dataclasses.replace(plain.mixer, window=window_of(s)))
        found = {
            (True, False): ("layer", plain),
            (False, False): ("nope", _without_positions(plain)),
            (True, True): ("sliding", windowed),
            (False, True): ("nope_sliding", _without_positions(windowed)),
        }
        turned = self.turned(s, dims.n_layers)
        names = [found[pair][0] for pair in zip(turned, self.windowed(s, turned), strict=True)]
        return names, dict(found.values())

    def turned(self, s: Settings, depth: int) -> list[bool]:
        """Which layers know positions."""
        if s.value("no_rope_layers") is not None:
            return s.each("no_rope_layers", {0: False, 1: True}, depth)
        interval = s.whole("no_rope_layer_interval")
        return [(layer + 1) % interval != 0 for layer in range(depth)]

    def windowed(self, s: Settings, turned: list[bool]) -> list[bool]:
        """Which layers have a window: those without positions, unless `layer_types` says otherwise."""
        in_use = s.flag("use_sliding_window") and s.value("sliding_window") is not None
        if s.value("layer_types") is None:
            return [in_use and not turns for turns in turned]
        windowed = s.each("layer_types", TYPES, len(turned))
        if any(windowed) and not in_use:
            raise s.refused("layer_types", "full_attention alone, or use_sliding_window with a sliding_window")
        return windowed

    def positions_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        if all(isinstance(kind.positions, NoPositions) for kind in kinds):
            return {}
        return super().positions_config(model, kinds)

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        no_rope = [int(not isinstance(kind.positions, NoPositions)) for kind in kinds]
        windows = window_config(kinds, model.bidirectional)
        return {**super().mixer_config(model, kinds), **windows, "no_rope_layers": no_rope}


def _without_positions(kind: LayerSpec) -> LayerSpec:
    """Nothing is rotated, hence YaRN's temperature is missing too."""
    mixer = dataclasses.replace(part(kind.mixer, Attention, "mixer"), scale=None)
    return dataclasses.replace(kind, mixer=mixer, positions=NoPositions())
