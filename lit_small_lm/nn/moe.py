"""Mixture of experts (arXiv 1701.06538): every position goes through the few experts that a router chooses for it.

Dropless, as in arXiv 2211.15841: no expert has a capacity. The trick: positions are sorted by expert, so that all
experts are one grouped product; each expert stays a module with weights of its own.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_small_lm.context import Context
from lit_small_lm.errors import RequestError
from lit_small_lm.grouped import grouped_linear
from lit_small_lm.plugin import FFN, Linear, Router, Routing, Site, setting
from lit_small_lm.roles import Sparse, TwoMaps

FEW = 4
"""Without gradients, fewer rows than this an expert are looped over: a grouped product reads the weights of every
expert, the loop those of the experts in use."""


@dataclass(frozen=True, kw_only=True)
class MoE(FFN):
    """A sum of the chosen experts' outputs, weighted by the router, and of a shared expert if there is one.

    Canon D has no place in it: the neighbours of a position may have gone to other experts (arXiv 2512.17351).
    """

    expert: FFN
    """What each expert is; one of two linear maps without biases is computed fastest."""
    router: Router
    """Chooses the experts of each position."""
    n_experts: int = setting(8, low=1)
    """Experts to choose from."""
    expert_hidden: int | None = setting(None, low=1, unit="channels")
    """Hidden width of each expert; null: the shape's."""
    shared_hidden: int | None = setting(None, low=1, unit="channels")
    """Hidden width of a further expert that every position goes through (arXiv 2401.06066); null: none."""
    shared_gate: Literal["none", "sigmoid"] = "none"
    """Whether the shared expert's output is multiplied with a learned number of each position (Qwen2-MoE)."""

    def build(self, site: Site) -> nn.Module:
        if isinstance(self.expert, MoE):
            raise RequestError("ffn.expert: MoE in MoE; allowed: any other FFN")
        if self.router.top_k > self.n_experts:
            raise RequestError(f"ffn.router.top_k: {self.router.top_k}; allowed: at most n_experts {self.n_experts}")
        if self.shared_gate != "none" and self.shared_hidden is None:
            raise RequestError(f"ffn.shared_gate: {self.shared_gate} without shared_hidden; allowed: none")
        return MoEFFN(self, site)


class MoEFFN(nn.Module):
    """h (B, T, D) -> (B, T, D), position by position."""

    def __init__(self, spec: MoE, site: Site) -> None:
        super().__init__()
        self.router = spec.router.build(site, spec.n_experts)
        width = spec.expert_hidden or site.dims.hidden
        built = (spec.expert.build(inside(site, width)) for _ in range(spec.n_experts))
        self.experts = Sparse(built, used=spec.router.top_k)
        self.shared = spec.expert.build(inside(site, spec.shared_hidden)) if spec.shared_hidden else None
        self.shared_gate = Linear(site.dim, 1, role="router") if spec.shared_gate == "sigmoid" else None
        first = self.experts[0]
        self.together = isinstance(first, TwoMaps) and all(linear.bias is None for linear in first.maps())

    def forward(self, h: Tensor, ctx: Context) -> Tensor:
        positions = h.flatten(0, 1)  # (M, D)
        routing = self.router(positions, ctx)
        out = self.mixed(positions, routing, ctx).view_as(h)
        if self.shared is None:
            return out
        always = self.shared(h, ctx)
        return out + (always if self.shared_gate is None else torch.sigmoid(self.shared_gate(h)) * always)

    def mixed(self, h: Tensor, routing: Routing, ctx: Context) -> Tensor:
        """h (M, D) -> (M, D): the weighted sum of each position's experts."""
        chosen = routing.experts.flatten()  # (Mk,)
        order = chosen.argsort(stable=True)
        numbers = torch.arange(len(self.experts), device=chosen.device)
        ends = torch.searchsorted(chosen[order], numbers, right=True, out_int32=True)  # (E,)
        rows = h[order // routing.experts.shape[1]]  # (Mk, D), sorted by expert
        outs = (self.grouped if self.groups(rows) else self.looped)(rows, ends, ctx)
        outs = outs[order.argsort()].unflatten(0, routing.experts.shape)  # (M, k, D)
        return (outs * routing.weights.unsqueeze(-1)).sum(1).to(outs.dtype)

    def groups(self, rows: Tensor) -> bool:
        """Whether these rows (R, D) are worth one grouped product."""
        return self.together and (every_expert_runs() or len(rows) >= FEW * len(self.experts))

    def grouped(self, rows: Tensor, ends: Tensor, ctx: Context) -> Tensor:
        """rows (R, D) sorted by expert -> (R, D): all experts as one, each map a grouped product."""
        maps = [expert.maps() for expert in self.experts]
        into, out_of = [one.weight for one, _ in maps], [two.weight for _, two in maps]
        found = self.experts[0].run(
            rows.unsqueeze(0),
            ctx,
            lambda h: grouped_linear(h.squeeze(0), into, ends).unsqueeze(0),
            lambda h: grouped_linear(h.squeeze(0), out_of, ends).unsqueeze(0),
        )
        return found.squeeze(0)

    def looped(self, rows: Tensor, ends: Tensor, ctx: Context) -> Tensor:
        """The plain twin, for any expert: each runs on its rows."""
        pieces = zip(self.experts, rows.split(sizes(rows, ends)), strict=True)
        used = [(expert, piece) for expert, piece in pieces if every_expert_runs() or len(piece)]
        return torch.cat([expert(piece.unsqueeze(0), ctx).squeeze(0) for expert, piece in used])


def every_expert_runs() -> bool:
    """Whether experts run on no rows too: so that each weight has a gradient, or a compiled graph fits all batches."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def inside(site: Site, hidden: int) -> Site:
    """The surroundings of an expert: another hidden width, and no place for Canon layers."""
    dims = dataclasses.replace(site.dims, hidden=hidden)
    return dataclasses.replace(site, dims=dims, canon=None, canon_at="", claimed=set())


def sizes(rows: Tensor, ends: Tensor) -> list[int]:
    """How many rows (R, D) each group has. Nobody knows on the meta device: there they are as even as can be."""
    count = len(ends)
    if rows.is_meta:
        return [len(rows) * (i + 1) // count - len(rows) * i // count for i in range(count)]
    return ends.diff(prepend=ends.new_zeros(1)).tolist()
