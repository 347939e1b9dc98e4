"""Qwen3-MoE (arXiv 2505.09388): Qwen 3's attention, eight of 128 narrow experts a token, some layers dense."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import COMMON, FOREIGN, Decoder, part
from lit_small_lm.hf.experts import ROUTING, experts, number_of_experts, routing_config, softmax_of, softmax_router
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.settings import Settings
from lit_small_lm.hf.windows import window_in, window_of
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.plugin import FFN, Dims


class Qwen3MoE(Decoder):
    """`Qwen3MoeForCausalLM`; experts have a width of their own, the hidden width is that of dense layers."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults = {
        **COMMON,
        **ROUTING,
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 768,
        "num_experts": 128,
    }

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return dataclasses.replace(
            super().mixer(s, dims),
            window=window_of(s) if s.flag("use_sliding_window") else None,
            qk_norm=self.norm(s),
        )

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        _, kinds = super().layers(s, dims)
        dense = kinds["layer"]
        count = number_of_experts(s, "num_experts")
        moe = MoE(
            expert=dense.ffn,
            router=softmax_router(s, count),
            n_experts=count,
            expert_hidden=s.whole("moe_intermediate_size", high=2**24),
        )
        names = ["layer" if sparse else "dense" for sparse in self.sparse(s, dims.n_layers)]
        return names, {"layer": dataclasses.replace(dense, ffn=moe), "dense": dense}

    def sparse(self, s: Settings, depth: int) -> list[bool]:
        """Which layers have experts: every one, or every `decoder_sparse_step`th, but for `mlp_only_layers`."""
        step, dense = s.whole("decoder_sparse_step"), s.value("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
            raise s.refused("mlp_only_layers", "a list of numbers of layers")
        return [layer not in set(dense) and (layer + 1) % step == 0 for layer in range(depth)]

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        if isinstance(ffn, GatedMLP):
            return entries.gated(f"{ours}.ffn", f"{theirs}.mlp", ffn, dims.groups_of(dims.hidden))
        return experts(f"{ours}.ffn", f"{theirs}.mlp", part(ffn, MoE, "ffn"), dims)

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        window = window_in(kinds, model.bidirectional)
        return {
            **super().mixer_config(model, kinds),
            "use_sliding_window": window is not None,
            "sliding_window": window,
        }

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        moe = next((kind.ffn for kind in kinds if isinstance(kind.ffn, MoE)), None)
        if moe is None:
            raise Unfit(f"ffn {type(kinds[0].ffn).__name__}: no layer is MoE", FOREIGN)
        return {
            **routing_config(moe),
            "moe_intermediate_size": moe.expert_hidden or model.shape.resolve().hidden,
            "mlp_only_layers": [number for number, kind in enumerate(kinds) if not isinstance(kind.ffn, MoE)],
            "num_experts": moe.n_experts,
            "norm_topk_prob": softmax_of(moe).normalise == "chosen",
        }
