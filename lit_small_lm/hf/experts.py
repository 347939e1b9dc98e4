"""Mixtures of experts in public files: one file tensor an expert and projection, one router a layer."""

from typing import Any

from lit_small_lm.hf import entries
from lit_small_lm.hf.decoder import FOREIGN, part
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Unfit
from lit_small_lm.hf.settings import ACTIVATION_NAMES, Settings
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.plugin import Dims

DENSE = ("gate_proj", "up_proj", "down_proj")
ROUTING = {"num_experts_per_tok": 8, "norm_topk_prob": False, "router_aux_loss_coef": 0.001}
"""Fields of a softmax router and the defaults that most classes have."""


def number_of_experts(s: Settings, key: str) -> int:
    """Experts a layer; transformers writes `num_local_experts` for what some released files call `num_experts`."""
    other = {"num_experts": "num_local_experts", "num_local_experts": "num_experts"}[key]
    return s.whole(key if key in s.given or other not in s.given else other, high=2**16)


def softmax_router(s: Settings, n_experts: int) -> SoftmaxRouter:
    """The router of these fields. The public classes have no loss on the size of its logits."""
    return SoftmaxRouter(
        top_k=s.whole("num_experts_per_tok", high=n_experts),
        normalise="chosen" if s.flag("norm_topk_prob") else "all",
        balance_loss=s.number("router_aux_loss_coef", low=0),
        z_loss=0.0,
    )


def softmax_of(moe: MoE) -> SoftmaxRouter:
    """The router of a mixture without a shared expert. Raises Unfit."""
    if moe.shared_hidden is not None:
        raise Unfit(f"ffn.shared_hidden {moe.shared_hidden}: a shared expert", FOREIGN)
    return part(moe.router, SoftmaxRouter, "ffn.router")


def routing_config(moe: MoE) -> dict[str, Any]:
    """The fields that the classes have in common."""
    router = softmax_of(moe)
    return {
        "hidden_act": ACTIVATION_NAMES[part(moe.expert, GatedMLP, "ffn.expert").activation],
        "num_experts_per_tok": router.top_k,
        "router_aux_loss_coef": router.balance_loss,
    }


def experts(
    ours: str, theirs: str, moe: MoE, dims: Dims, names: tuple[str, str, str] = DENSE, router: str = "gate"
) -> list[Entry]:
    """The entries of the router and of every expert; those of shared experts are the caller's."""
    spec, width = part(moe.expert, GatedMLP, "ffn.expert"), moe.expert_hidden or dims.hidden
    found = entries.linear(f"{ours}.router.proj", (f"{theirs}.{router}",), False)
    for number in range(moe.n_experts):
        inner = f"{theirs}.experts.{number}"
        found += entries.gated(f"{ours}.experts.{number}", inner, spec, dims.groups_of(width), names)
    return found
