"""Dhara (huggingface.co/codelion/dhara-70m): Llama's layer with Canon layers (arXiv 2512.17351), for masked diffusion.

The public class is remote code that is not at hand: what a file leaves out is taken from the published counts, and
tensors are named as in the code of Canon's authors, whose settings Dhara shares.
"""

import dataclasses
from typing import Any

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import COMMON, Decoder, part
from lit_small_lm.hf.names import Entry, Fused, Taps
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import FFN, Dims, Mixer


class Dhara(Decoder):
    """`DharaForMaskedDiffusion`, and `DharaAR` without a mask token.

    Canon D spans the product of gate and up, which gives the published 638,976 parameters of Canon layers of the 250M
    model; so does a norm of queries and keys without gains, which is the same before their rotation as after it.
    """

    model_type = "dhara"
    architecture = "DharaForMaskedDiffusion"
    defaults = {
        **COMMON,
        "vocab_size": None,
        "hidden_size": None,
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "canon_set": "",
        "canon_kernel": 4,
        "qk_norm": False,
        "mask_token_id": None,
        "final_logit_softcapping": None,
    }
    fixed = {
        "attention_bias": False,
        "mlp_bias": False,
        "canon_bias": False,
        "canon_activation": False,
        "canon_residual": True,
    }

    def model(self, s: Settings) -> Model:
        mask = None if s.value("mask_token_id") is None else s.whole("mask_token_id", low=0)
        return dataclasses.replace(super().model(s), mask_id=mask)

    def both_ways(self, s: Settings) -> bool:
        return super().both_ways(s) or s.value("mask_token_id") is not None

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        norm = RMSNorm(eps=s.number("rms_norm_eps", above=0), gain="none") if s.flag("qk_norm") else None
        return dataclasses.replace(super().mixer(s, dims), qk_norm=norm)

    def ffn(self, s: Settings, dims: Dims) -> FFN:
        letters = s.value("canon_set")
        spans_product = isinstance(letters, str) and "D" in letters
        return GatedMLP(activation=s.activation("hidden_act"), canon_span="hidden" if spans_product else "gate_up")

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        names, kinds = super().layers(s, dims)
        canon = CausalCanon(kernel=s.whole("canon_kernel", high=1024))
        return names, {name: dataclasses.replace(kind, canon=canon) for name, kind in kinds.items()}

    def finished(self, s: Settings, backbone: BackboneSpec) -> BackboneSpec:
        letters, cap = s.value("canon_set"), s.value("final_logit_softcapping")
        if not isinstance(letters, str) or not set(letters) <= set("ABCD") or len(set(letters)) < len(letters):
            raise s.refused("canon_set", "letters of ABCD, each at most once")
        softcap = None if cap is None else s.number("final_logit_softcapping", above=0)
        return dataclasses.replace(backbone, canon_at="".join(sorted(letters)), logit_softcap=softcap)

    # ---------------------------------------------------------------------------------------------------------- names
    def names(self, model: Model) -> list[Entry]:
        dims, found = model.shape.resolve(), list(super().names(model))
        for number, kind in enumerate(model.backbone.layers(dims.n_layers)):
            found += self.canon_names(f"layers.{number}", f"model.layers.{number}", kind.canon_at, dims)
        return found

    def canon_names(self, ours: str, theirs: str, letters: str, dims: Dims) -> list[Entry]:
        """The entries of a layer's Canon layers; B spans queries, keys and values one after another in the files."""
        rows = (dims.n_heads * dims.head_dim, *(dims.n_kv_heads * dims.head_dim,) * 2)
        places = {
            "A": (f"{ours}.canon_a", f"{theirs}.canonA", Taps()),
            "B": (f"{ours}.mixer.canon", f"{theirs}.self_attn.canonB", Taps(Fused(rows, entries.heads(dims)))),
            "C": (f"{ours}.canon_c", f"{theirs}.canonC", Taps()),
            "D": (f"{ours}.ffn.canon_hidden", f"{theirs}.mlp.canonD", Taps()),
        }
        found = [places[letter] for letter in letters]
        return [Entry(f"{own}.sum.weight", (f"{public}.weight",), join) for own, public, join in found]

    def mixer_names(self, ours: str, theirs: str, mixer: Mixer, dims: Dims) -> list[Entry]:
        bare = dataclasses.replace(part(mixer, Attention, "mixer"), qk_norm=None)  # its norms have no gains
        return entries.attention(f"{ours}.mixer", f"{theirs}.self_attn", bare, dims)

    # -------------------------------------------------------------------------------------------------------- writing
    def config(self, model: Model) -> dict[str, Any]:
        kind = model.backbone.layers(model.shape.resolve().n_layers)[0]
        if model.bidirectional and model.mask_id is None:
            raise Unfit("Dhara: attention both ways without a mask token")
        return {
            **super().config(model),
            "canon_set": "".join(sorted(kind.canon_at)),
            "canon_kernel": part(kind.canon, CausalCanon, "canon").kernel,
            "mask_token_id": model.mask_id,
            "final_logit_softcapping": model.backbone.logit_softcap,
        }

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        normed = part(kinds[0].mixer, Attention, "mixer").qk_norm is not None
        return {**super().mixer_config(model, kinds), "qk_norm": normed}
