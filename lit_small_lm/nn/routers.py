"""Routers: softmax with auxiliary losses (Switch, arXiv 2101.03961; ST-MoE, arXiv 2202.08906), and DeepSeek-V3's.

Scores are computed in float32 or better, whatever the network runs in. DeepSeek-V3's (arXiv 2412.19437) balances
without an auxiliary loss (arXiv 2408.15664): a bias that only the choice sees moves, once per optimizer step, towards
the experts that were used less than the mean. All sums leave padding out.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.context import Context, Trace, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Linear, Router, Routing, Site, setting
from lit_small_lm.roles import Stepped


@dataclass(frozen=True, kw_only=True)
class SoftmaxRouter(Router):
    """The likeliest experts of a softmax over all of them."""

    normalise: Literal["all", "chosen"] = "all"
    """What weights sum to one over: all experts (OLMoE), or those chosen for the position (Mixtral)."""
    balance_loss: float = setting(0.01, low=0, unit="nats")
    """Weight of experts / top_k * sum of (share of positions) * (mean probability), which is 1 where routing is even,
    over the positions of each accumulated batch of each process; 0: none."""
    z_loss: float = setting(0.001, low=0, unit="nats per squared nat")
    """Weight of the mean squared logarithm of the softmax's normaliser; 0: none."""

    def build(self, site: Site, n_experts: int) -> nn.Module:
        return SoftmaxRouting(self, site, n_experts)


class SoftmaxRouting(nn.Module):
    """h (M, D) -> Routing."""

    def __init__(self, spec: SoftmaxRouter, site: Site, n_experts: int) -> None:
        super().__init__()
        self.spec, self.layer = spec, site.layer
        self.proj = Linear(site.dim, n_experts, role="router")

    def forward(self, h: Tensor, ctx: Context) -> Routing:
        logits = exact_logits(h, self.proj)  # (M, E)
        scores = logits.softmax(-1)
        weights, experts = scores.topk(self.spec.top_k)
        if self.spec.normalise == "chosen":
            weights = summing_to_one(weights)
        if self.training:
            self.record(Usage.of(experts, scores, ctx.visibility), logits, weights, ctx.trace)
        return Routing(experts, weights)

    def record(self, usage: "Usage", logits: Tensor, weights: Tensor, trace: Trace) -> None:
        """Losses and metrics of a training batch."""
        balance = usage.pooled().balance(self.spec.top_k)
        squares = usage.mean(logits.logsumexp(-1).square())
        if self.spec.balance_loss:
            trace.losses["balance_loss", self.layer] = self.spec.balance_loss * balance
        if self.spec.z_loss:
            trace.losses["router_z_loss", self.layer] = self.spec.z_loss * squares
        metrics = {"balance": balance, "router_z": squares, **usage.metrics(weights)}
        trace.metrics.update({(name, self.layer): value.detach() for name, value in metrics.items()})


@dataclass(frozen=True, kw_only=True)
class SigmoidRouter(Router):
    """DeepSeek-V3's router: each expert scored by itself, groups of experts chosen first, balanced by a moving bias."""

    top_k: int = setting(8, low=1, unit="experts")
    """Experts each position goes through."""
    n_groups: int = setting(1, low=1)
    """Equal groups of consecutive experts."""
    top_groups: int = setting(1, low=1)
    """Groups to choose from, those whose best two experts have the highest sum of scores."""
    scale: float = setting(1.0, above=0)
    """What the weights are multiplied with (2.5 in DeepSeek-V3)."""
    normalise: Literal["none", "chosen"] = "chosen"
    """Whether the weights of the chosen experts are made to sum to one before they are scaled."""
    balance_loss: float = setting(1e-4, low=0, unit="nats")
    """Weight of the balance loss of each row of a batch by itself, 1 where its routing is even; 0: none."""
    bias_rate: float = setting(1e-3, low=0, unit="per step")
    """How far each expert's bias moves after a step, up or down; 0: not at all."""

    def build(self, site: Site, n_experts: int) -> nn.Module:
        if n_experts % self.n_groups:
            raise RequestError(f"router.n_groups: {self.n_groups} does not divide the {n_experts} experts")
        if self.top_groups > self.n_groups:
            raise RequestError(f"router.top_groups: {self.top_groups}; allowed: at most n_groups {self.n_groups}")
        reachable = n_experts // self.n_groups * self.top_groups
        if self.top_k > reachable:
            raise RequestError(f"router.top_k: {self.top_k}; allowed: at most the {reachable} experts of top_groups")
        return SigmoidRouting(self, site, n_experts)


class SigmoidRouting(Stepped, nn.Module):
    """h (M, D) -> Routing; `bias` (E,) is added to the scores for the choice alone."""

    moving: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(self, spec: SigmoidRouter, site: Site, n_experts: int) -> None:
        super().__init__()
        self.spec, self.address, self.layer = spec, site.address, site.layer
        self.proj = Linear(site.dim, n_experts, role="router")
        self.register_buffer("bias", torch.zeros(n_experts, dtype=torch.float32))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.bias = self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))  # its steps are small
        return self

    def forward(self, h: Tensor, ctx: Context) -> Routing:
        scores = torch.sigmoid(exact_logits(h, self.proj))  # (M, E)
        experts = self.choose(scores.detach() + self.bias)
        weights = scores.gather(1, experts)
        if self.spec.normalise == "chosen":
            weights = summing_to_one(weights)
        weights = weights * self.spec.scale
        if self.training:
            self.record(Usage.of(experts, summing_to_one(scores), ctx.visibility), weights, ctx.trace)
        return Routing(experts, weights)

    def choose(self, scores: Tensor) -> Tensor:
        """scores (M, E) -> (M, k) ids of the best experts of the best groups."""
        groups = scores.unflatten(1, (self.spec.n_groups, -1))  # (M, groups, E/groups)
        if self.spec.top_groups < self.spec.n_groups:
            best = groups.topk(min(2, groups.shape[2])).values.sum(-1).topk(self.spec.top_groups).indices
            closed = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
            groups = groups.masked_fill(closed.unsqueeze(-1), -torch.inf)
        return groups.flatten(1).topk(self.spec.top_k).indices

    def record(self, usage: "Usage", weights: Tensor, trace: Trace) -> None:
        """Loss, metrics and tally of a training batch."""
        balance = usage.balance(self.spec.top_k)
        if self.spec.balance_loss:
            trace.losses["balance_loss", self.layer] = self.spec.balance_loss * balance
        if self.spec.bias_rate:
            trace.tallies[self.address] = usage.counts.sum(0).long()
        spread = (self.bias.max() - self.bias.min()).clone()
        metrics = {"balance": balance, "bias_range": spread, **usage.metrics(weights)}
        trace.metrics.update({(name, self.layer): value.detach() for name, value in metrics.items()})

    def reset_moving(self) -> None:
        """No expert is preferred at the start."""
        self.bias.zero_()

    @torch.no_grad()
    def after_step(self, tally: Tensor) -> None:
        """Experts used less than the mean become likelier by one rate, those used more less likely."""
        load = tally.double()
        self.bias += self.spec.bias_rate * (load.mean() - load).sign().to(self.bias)


def exact_logits(h: Tensor, proj: Linear) -> Tensor:
    """h (M, D) -> (M, E) in float32 or better, under autocast too."""
    exact = torch.promote_types(h.dtype, torch.float32)
    if h.is_meta:  # no autocast for it
        return F.linear(h.to(exact), proj.weight.to(exact))
    with torch.autocast(h.device.type, enabled=False):
        return F.linear(h.to(exact), proj.weight.to(exact))


def summing_to_one(weights: Tensor) -> Tensor:
    """Weights (M, k), none negative, each row divided by its sum."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


class Usage(NamedTuple):
    """How a batch uses experts, row by row; padding is left out."""

    counts: Tensor
    """(B, E) positions that go through each expert."""
    scores: Tensor
    """(B, E) sums over positions of scores that sum to one over experts."""
    positions: Tensor
    """(B,) how many there are."""
    counted: Tensor
    """(M,) one for each of them, zero for padding."""

    @classmethod
    def of(cls, experts: Tensor, scores: Tensor, visibility: Visibility) -> "Usage":
        """Of experts (M, k) and scores (M, E), M being all positions of the rows."""
        (rows, time), docs, size = visibility.positions.shape, visibility.doc_ids, scores.shape[1]
        counted = scores.new_ones(len(scores)) if docs is None else (docs.flatten() >= 0).to(scores)  # (M,)
        places = torch.arange(len(scores), device=scores.device).unsqueeze(1) // time * size + experts  # (M, k)
        each = counted.unsqueeze(1).expand_as(experts).flatten()  # (Mk,)
        counts = scores.new_zeros(rows * size).scatter_add(0, places.flatten(), each).view(rows, size)
        sums = (scores * counted.unsqueeze(1)).unflatten(0, (rows, -1)).sum(1)
        return cls(counts, sums, counted.view(rows, -1).sum(1), counted)

    def pooled(self) -> "Usage":
        """All rows as one."""
        counts, scores, positions = (part.sum(0, keepdim=True) for part in self[:3])
        return Usage(counts, scores, positions, self.counted)

    def balance(self, top_k: int) -> Tensor:
        """E/k * sum of (share of positions) * (mean score), averaged over rows: 1 where use is even, E/k at worst."""
        total = self.positions.clamp(min=1).unsqueeze(1)
        each = (self.counts / total * self.scores / total).sum(1) * (self.counts.shape[1] / top_k)  # (B,)
        return each.sum() / (self.positions > 0).sum().clamp(min=1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values (M,) over the positions that count."""
        return (values * self.counted).sum() / self.counted.sum().clamp(min=1)

    def metrics(self, weights: Tensor) -> dict[str, Tensor]:
        """Load of the busiest expert over the mean, share of unused experts, entropy of the load over that of an even
        one, mean of the largest weight (M, k)."""
        load = self.counts.sum(0)  # (E,)
        share, even = load / load.sum().clamp(min=1), torch.log(torch.full_like(load[0], float(len(load))))
        return {
            "load_imbalance": load.max() / load.mean().clamp(min=1e-9),
            "dead_experts": (load == 0).to(load).mean(),
            "load_entropy": torch.special.entr(share).sum() / even.clamp(min=1e-9),
            "top_weight": self.mean(weights.amax(-1)),
        }
