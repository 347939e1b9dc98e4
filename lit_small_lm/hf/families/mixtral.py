"""Mixtral (arXiv 2401.04088): Mistral's attention, and two of eight experts a token, whose weights sum to one."""

from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf.decoder import part
from lit_small_lm.hf.experts import experts, number_of_experts, routing_config, softmax_router
from lit_small_lm.hf.families.mistral import Mistral
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.moe import MoE
from lit_small_lm.plugin import FFN, Dims


class Mixtral(Mistral):
    """`MixtralForCausalLM`; experts are as wide as the shape's hidden width."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    theta = 1e6
    defaults = {
        **Mistral.defaults,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
        "norm_topk_prob": True,
    }
    fixed = {"router_jitter_noise": 0.0, "norm_topk_prob": True}

    def ffn(self, s: Settings, dims: Dims) -> FFN:
        count = number_of_experts(s, "num_local_experts")
        return MoE(expert=super().ffn(s, dims), router=softmax_router(s, count), n_experts=count)

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        inner = f"{theirs}.block_sparse_moe"
        return experts(f"{ours}.ffn", inner, part(ffn, MoE, "ffn"), dims, ("w1", "w3", "w2"))

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        moe = part(kinds[0].ffn, MoE, "ffn")
        width = moe.expert_hidden or model.shape.resolve().hidden
        return {**routing_config(moe), "intermediate_size": width, "num_local_experts": moe.n_experts}
