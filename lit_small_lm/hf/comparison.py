"""What differs between two models in our terms, apart from what only matters while training.

Layer by layer and with every default resolved, so that two ways of saying the same thing are equal.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.errors import shown
from lit_small_lm.hf.public import Model
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.positions import Learned, NoPositions
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import Dims, Spec

TRAINING = {"dropout", "attention_dropout", "balance_loss", "z_loss", "bias_rate", "start"}
"""Fields of parts that change how a model is trained, not what it computes."""


def differences(ours: Model, theirs: Model) -> list[str]:
    """`where our value (theirs)` for everything that the two models do not have in common.

    What differs alike in several layers is told once, of the first of them.
    """
    found = list(_differences("", _whole(ours), _whole(theirs)))
    told = set()
    for number, (a, b) in enumerate(zip(_layers(ours), _layers(theirs), strict=False)):
        texts = [text for text in _differences("", a, b) if text not in told]
        told.update(texts)
        found += [f"layer {number}.{text}" for text in texts]
    return found


def _layers(model: Model) -> list[LayerSpec]:
    dims = model.shape.resolve()
    return [_layer(kind, dims) for kind in model.backbone.layers(dims.n_layers)]


def _whole(model: Model) -> dict[str, Any]:
    backbone, dims = model.backbone, model.shape.resolve()
    return {
        "shape": {name: getattr(dims, name) for name in _widths_in_use(_layers(model))},
        "vocab_size": model.vocab_size,
        "norm": backbone.norm,
        "head": backbone.head,
        "embedding_scale": backbone.embedding_scale,
        "logit_softcap": backbone.logit_softcap,
        "learned positions": backbone.positions if isinstance(backbone.positions, Learned) else None,
        "bidirectional": model.bidirectional,
        "parameters beside the backbone": sorted(model.extras.items()),
    }


def _widths_in_use(layers: list[LayerSpec]) -> list[str]:
    """Names of the widths that count: latent attention and convolutions have no key/value heads, experts their own."""
    names = ["dim", "n_layers", "n_heads"]
    if any(not isinstance(kind.mixer, (MLA, ShortConv)) for kind in layers):
        names += ["n_kv_heads", "head_dim"]
    return names + (["hidden"] if any(not isinstance(kind.ffn, MoE) for kind in layers) else [])


def _layer(kind: LayerSpec, dims: Dims) -> LayerSpec:
    """A kind of layer with what is left open filled in, and what has no effect reset."""
    letters = "".join(sorted(kind.canon_at or ""))
    mixer, ffn, positions = kind.mixer, kind.ffn, kind.positions
    if isinstance(mixer, Attention) and mixer.scale is None:
        mixer = dataclasses.replace(mixer, scale=1 / math.sqrt(dims.head_dim))
    if isinstance(mixer, ShortConv):
        positions = NoPositions()
    if isinstance(mixer, MLA) and mixer.scale is None:
        mixer = dataclasses.replace(mixer, scale=1 / math.sqrt(mixer.nope_dim + mixer.rope_dim))
    if isinstance(ffn, MoE) and ffn.expert_hidden is None:
        ffn = dataclasses.replace(ffn, expert_hidden=dims.hidden)
    if isinstance(ffn, GatedMLP) and "D" not in letters:
        ffn = dataclasses.replace(ffn, canon_span="gate_up")
    canon = kind.canon if letters else CausalCanon()
    return LayerSpec(mixer=mixer, ffn=ffn, canon=canon, canon_at=letters, positions=positions)


def _differences(where: str, a: Any, b: Any) -> Iterator[str]:
    if isinstance(a, Spec) and type(a) is type(b):
        a, b = ({f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)} for spec in (a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b} - TRAINING, key=str):
            yield from _differences(f"{where}.{key}" if where else str(key), a.get(key), b.get(key))
    elif not _equal(a, b):
        yield f"{where} {_text(a)} (it has {_text(b)})"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _text(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Spec) else shown("null" if value is None else repr(value))
