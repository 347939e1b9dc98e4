"""DeepSeek-V3 (arXiv 2412.19437): latent attention, and experts chosen by a sigmoid router that a bias balances.

The first layers are dense; every other one has a shared expert. Rotated channels lie in neighbouring pairs in its
files, half a head apart in ours. Its multi-token module is left out.
"""

import dataclasses
from typing import Any

from lit_small_lm.backbone import LayerSpec
from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import COMMON, FOREIGN, Decoder, part
from lit_small_lm.hf.experts import experts
from lit_small_lm.hf.names import Entry, HalfSplit
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.rope import Rope, read_rope, write_rope, yarn_growth
from lit_small_lm.hf.settings import ACTIVATION_NAMES, Settings
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.routers import SigmoidRouter
from lit_small_lm.plugin import FFN, Dims, Mixer, Positions
from lit_small_lm.shapes import FixedShape

LATENT_EPS = 1e-6
"""Of the norms of both latents, whatever `rms_norm_eps` says."""


class DeepSeekV3(Decoder):
    """`DeepseekV3ForCausalLM`."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    defaults = {
        **COMMON,
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "qk_nope_head_dim": 128,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    }
    fixed = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_interleave": True,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }

    # -------------------------------------------------------------------------------------------------------- reading
    def shape(self, s: Settings) -> FixedShape:
        shape = super().shape(s)
        if shape.n_kv_heads != shape.n_heads:
            raise s.refused("num_key_value_heads", f"num_attention_heads, {shape.n_heads}")
        return shape

    def head_dim(self, s: Settings, dim: int, n_heads: int) -> int:
        return s.whole("qk_nope_head_dim", high=2**15) + s.whole("qk_rope_head_dim", high=2**15)

    def rope(self, s: Settings) -> Rope:
        """Rotary positions; the temperature of YaRN would have to reach the channels that are not rotated."""
        rope = read_rope(s, self.theta)
        if rope.amplitude != 1:
            raise s.refused("rope_scaling", "YaRN with mscale equal to mscale_all_dim, or attention_factor 1")
        return rope

    def positions(self, s: Settings) -> Positions:
        return self.rope(s).positions

    def mixer(self, s: Settings, dims: Dims) -> MLA:
        return MLA(
            q_rank=None if s.value("q_lora_rank") is None else s.whole("q_lora_rank", high=2**20),
            kv_rank=s.whole("kv_lora_rank", high=2**20),
            nope_dim=s.whole("qk_nope_head_dim", high=2**15),
            rope_dim=s.whole("qk_rope_head_dim", high=2**15),
            value_dim=s.whole("v_head_dim", high=2**15),
            scale=self.scale(s, dims.head_dim),
            norm=RMSNorm(eps=LATENT_EPS),
        )

    def scale(self, s: Settings, width: int) -> float | None:
        """The factor on the scores, on which the temperature of YaRN lies; None: the usual one."""
        scaling = self.rope(s).positions.scaling
        given = s.given.get("rope_scaling") or s.given.get("rope_parameters") or {}
        slope = given.get("mscale_all_dim")
        if scaling is None or not slope:
            return None
        inner = Settings(given, {}, f"{s.where}: rope_scaling")
        return width**-0.5 * yarn_growth(scaling.factor, inner.number("mscale_all_dim")) ** 2

    def layers(self, s: Settings, dims: Dims) -> tuple[list[str], dict[str, LayerSpec]]:
        _, kinds = super().layers(s, dims)
        dense = kinds["layer"]
        width = s.whole("moe_intermediate_size", high=2**24)
        count = s.whole("n_routed_experts", high=2**16)
        moe = MoE(
            expert=dense.ffn,
            router=self.router(s, count),
            n_experts=count,
            expert_hidden=width,
            shared_hidden=width * s.whole("n_shared_experts", high=2**10),
        )
        first = min(s.whole("first_k_dense_replace", low=0), dims.n_layers)
        names = ["dense"] * first + ["layer"] * (dims.n_layers - first)
        return names, {"layer": dataclasses.replace(dense, ffn=moe), "dense": dense}

    def router(self, s: Settings, count: int) -> SigmoidRouter:
        """The router of `count` experts."""
        groups = s.whole("n_group", high=count)
        if count % groups:
            raise s.refused("n_group", f"a divisor of n_routed_experts, {count}")
        best = s.whole("topk_group", high=groups)
        return SigmoidRouter(
            top_k=s.whole("num_experts_per_tok", high=count // groups * best),
            n_groups=groups,
            top_groups=best,
            scale=s.number("routed_scaling_factor", above=0),
            normalise="chosen" if s.flag("norm_topk_prob") else "none",
        )

    # ---------------------------------------------------------------------------------------------------------- names
    def mixer_names(self, ours: str, theirs: str, mixer: Mixer, dims: Dims) -> list[Entry]:
        spec, ours, theirs = part(mixer, MLA, "mixer"), f"{ours}.mixer", f"{theirs}.self_attn"
        heads, shared = HalfSplit(dims.n_heads, spec.rope_dim), HalfSplit(1, spec.rope_dim)
        if spec.q_rank is None:
            found = entries.linear(f"{ours}.q_proj", (f"{theirs}.q_proj",), False, heads)
        else:
            found = entries.linear(f"{ours}.q_down", (f"{theirs}.q_a_proj",), False)
            found += entries.norm(f"{ours}.q_norm", f"{theirs}.q_a_layernorm", spec.norm)
            found += entries.linear(f"{ours}.q_up", (f"{theirs}.q_b_proj",), False, heads)
        found += entries.linear(f"{ours}.kv_down", (f"{theirs}.kv_a_proj_with_mqa",), False, shared)
        found += entries.norm(f"{ours}.kv_norm", f"{theirs}.kv_a_layernorm", spec.norm)
        found += entries.linear(f"{ours}.kv_up", (f"{theirs}.kv_b_proj",), False)
        return found + entries.linear(f"{ours}.o_proj", (f"{theirs}.o_proj",), False)

    def ffn_names(self, ours: str, theirs: str, ffn: FFN, dims: Dims) -> list[Entry]:
        ours, theirs = f"{ours}.ffn", f"{theirs}.mlp"
        if isinstance(ffn, GatedMLP):
            return entries.gated(ours, theirs, ffn, dims.groups_of(dims.hidden))
        moe = part(ffn, MoE, "ffn")
        found = experts(ours, theirs, moe, dims)
        found.append(Entry(f"{ours}.router.bias", (f"{theirs}.gate.e_score_correction_bias",)))
        groups = dims.groups_of(moe.shared_hidden)
        return found + entries.gated(f"{ours}.shared", f"{theirs}.shared_experts", moe.expert, groups)

    # -------------------------------------------------------------------------------------------------------- writing
    def positions_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        found = write_rope(part(kinds[0].positions, Rotary, "positions"))
        mixer = part(kinds[0].mixer, MLA, "mixer")
        if found["rope_scaling"] and mixer.scale:
            growth = (mixer.scale * (mixer.nope_dim + mixer.rope_dim) ** 0.5) ** 0.5
            steepest = yarn_growth(found["rope_scaling"]["factor"]) - 1
            found["rope_scaling"]["mscale_all_dim"] = (growth - 1) / steepest if steepest else 0.0
        return found

    def mixer_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        mixer = part(kinds[0].mixer, MLA, "mixer")
        return {
            "q_lora_rank": mixer.q_rank,
            "kv_lora_rank": mixer.kv_rank,
            "qk_nope_head_dim": mixer.nope_dim,
            "qk_rope_head_dim": mixer.rope_dim,
            "v_head_dim": mixer.value_dim,
            "head_dim": mixer.rope_dim,
            "num_key_value_heads": model.shape.resolve().n_heads,
        }

    def ffn_config(self, model: Model, kinds: list[LayerSpec]) -> dict[str, Any]:
        dense = [number for number, kind in enumerate(kinds) if not isinstance(kind.ffn, MoE)]
        if len(dense) == len(kinds):
            raise Unfit(f"ffn {type(kinds[0].ffn).__name__}: no layer is MoE", FOREIGN)
        moe = kinds[-1].ffn if isinstance(kinds[-1].ffn, MoE) else part(kinds[0].ffn, MoE, "ffn")
        router = part(moe.router, SigmoidRouter, "ffn.router")
        width = moe.expert_hidden or model.shape.resolve().hidden
        if not moe.shared_hidden or moe.shared_hidden % width:
            raise Unfit(f"ffn.shared_hidden {moe.shared_hidden} is no multiple of expert_hidden {width}")
        return {
            "hidden_act": ACTIVATION_NAMES[part(moe.expert, GatedMLP, "ffn.expert").activation],
            "moe_intermediate_size": width,
            "n_routed_experts": moe.n_experts,
            "n_shared_experts": moe.shared_hidden // width,
            "num_experts_per_tok": router.top_k,
            "n_group": router.n_groups,
            "topk_group": router.top_groups,
            "routed_scaling_factor": router.scale,
            "norm_topk_prob": router.normalise == "chosen",
            "first_k_dense_replace": len(dense),
        }
