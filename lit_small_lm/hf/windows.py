"""Layers whose attention looks back over a window, as config.json lists them: `layer_types`, `sliding_window`."""

from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention

TYPES = {"full_attention": False, "sliding_attention": True}
"""Names of kinds of layers -> whether they have a window."""


def window_of(s: Settings) -> int | None:
    """Visible keys of a layer with a window; the public classes count one more where attention looks both ways."""
    if s.value("sliding_window") is None:
        return None
    return s.whole("sliding_window") + (not s.flag("is_causal"))


def windowed_layers(s: Settings, depth: int) -> list[bool]:
    """Which layers have a window: `layer_types`, or those from `max_window_layers` on where windows are in use."""
    in_use = s.flag("use_sliding_window") and s.value("sliding_window") is not None
    if s.value("layer_types") is None:
        return [in_use and layer >= s.whole("max_window_layers", low=0) for layer in range(depth)]
    windowed = s.each("layer_types", TYPES, depth)
    if any(windowed) and not in_use:
        raise s.refused("layer_types", "full_attention alone, or use_sliding_window with a sliding_window")
    return windowed


def window_in(kinds: list[LayerSpec], bidirectional: bool) -> int | None:
    """The `sliding_window` to write: that of the first layer that has one."""
    found = next((k.mixer.window for k in kinds if isinstance(k.mixer, Attention) and k.mixer.window), None)
    return None if found is None else found - bidirectional


def layer_types(kinds: list[LayerSpec]) -> list[str]:
    """The `layer_types` to write."""
    windowed = (isinstance(kind.mixer, Attention) and kind.mixer.window is not None for kind in kinds)
    return ["sliding_attention" if window else "full_attention" for window in windowed]


def window_config(kinds: list[LayerSpec], bidirectional: bool) -> dict[str, Any]:
    """The fields of windows that some layers have."""
    window = window_in(kinds, bidirectional)
    found = {"use_sliding_window": window is not None, "sliding_window": window}
    return {**found, "layer_types": layer_types(kinds)}
