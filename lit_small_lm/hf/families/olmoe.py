"""OLMoE (arXiv 2409.02060): eight of 64 narrow experts a token, and RMSNorm over all queries and all keys."""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.decoder import COMMON, Decoder, part
from lit_small_lm.hf.experts import ROUTING, experts, number_of_experts, routing_config, softmax_of, softmax_router
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.moe import MoE
from lit_small_lm.plugin import FFN, Dims
from lit_small_lm.shapes import FixedShape


class OLMoE(Decoder):
    """`OlmoeForCausalLM`; experts are as wide as the shape's hidden width."""

    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    defaults = {
        **COMMON,
        **ROUTING,
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": None,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "num_experts": 64,
        "router_aux_loss_coef": 0.01,
    }
    fixed = {"clip_qkv": None, "sliding_window": None}

    def shape(self, s: Settings) -> FixedShape:
        shape = super().shape(s)
        if shape.n_heads * shape.head_dim != shape.dim:  # the public class sizes its norms so
            raise s.refused("head_dim", f"hidden_size / num_attention_heads, {shape.dim} / {shape.n_heads}")
        return shape

    def mixer(self, s: Settings, dims: Dims) -> Attention:
        return dataclasses.replace(super().mixer(s, dims), qk_norm=self.norm(s), qk_norm_over="width")

    def ffn(self, s: Settings, dims: Dims) -> FFN:
        count = number_of_experts(s, "num_experts")
        return MoE(expert=super().ffn(s, dims), router=softmax_router(s, count), n_experts=count)

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        return experts(f"{ours}.ffn", f"{theirs}.mlp", part(ffn, MoE, "ffn"), dims)

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        moe = part(kinds[0].ffn, MoE, "ffn")
        return {
            **routing_config(moe),
            "intermediate_size": moe.expert_hidden or model.shape.resolve().hidden,
            "num_experts": moe.n_experts,
            "norm_topk_prob": softmax_of(moe).normalise == "chosen",
        }
