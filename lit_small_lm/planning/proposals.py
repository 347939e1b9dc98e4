"""The inverse of a plan: from a compute budget or a target loss to parameters, tokens and shapes.

Parameters and tokens come from the fits of `laws`, as bands. Depth does not: no law says it, so three shapes of equal
size are offered, from wide to deep, each by the width per layer of released models. The one trick is to solve every
shape by its exact parameter count, embedding included, for whatever family is asked.
"""

import bisect
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from lit_small_lm.errors import RequestError
from lit_small_lm.planning import evidence, forecast
from lit_small_lm.planning.devices import UTILISATION, Arithmetic, Bill, Device, bill
from lit_small_lm.planning.forecast import Band, Bound, LossForecast, OptimumForecast, ReachForecast
from lit_small_lm.planning.laws import FLOPS
from lit_small_lm.planning.statement import Statement
from lit_small_lm.plugin import Dims, Size, Sizing
from lit_small_lm.shapes import BudgetShape

DEEPEST = 512
LEEWAY = 1.25
"""Factor by which width per layer may differ from what was asked, so that the parameters come nearer."""
STYLES = {"wide": 64, "medium": 32, "deep": 16}
"""Name of an alternative -> width per layer."""
RULE = Statement(
    "depth is chosen by width per layer: 64 (wide, as GPT-2 and LFM2), 32 (medium, as Qwen3-0.6B and MobileLLM-350M) "
    f"and 16 (deep, between Dhara-70M and SmolLM2-135M), up to a factor of {LEEWAY} off where that comes nearer to the "
    "parameters",
    "published configurations",
    "no fit says which is best; see the evidence on depth and width of each",
)


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a proposal is worked out with."""

    sizing: Sizing
    """Parameters of the family and vocabulary at given widths; the active ones of a mixture of experts."""
    total: Sizing | None = None
    """All parameters, where they are more than the active ones."""
    flops_per_token: Callable[[Dims], float] | None = None
    """Training FLOPs of one token; None: 6 N."""
    memory: Callable[[Dims], float] | None = None
    """Peak bytes while training; None: not said."""
    like: Dims | None = None
    """A shape whose head width, grouped queries and FFN ratio are kept; None: heads of 64, FFN of 8/3."""
    device: Device | None = None
    """What time, energy and cost are of; None: not said."""
    arithmetic: Arithmetic = "bf16"
    utilisation: float = UTILISATION
    count: int = 1
    """Devices."""
    price: float | None = None
    """Of one device for one hour."""


@dataclass(frozen=True)
class Alternative:
    """One proposed shape, trained with the whole budget."""

    style: str
    """wide, medium or deep."""
    dims: Dims
    size: Size
    """The active parameters of a mixture of experts."""
    total: Size | None
    """All parameters, where they are more than that."""
    tokens: float
    loss: LossForecast
    bill: Bill | None
    memory: float | None
    """Peak bytes while training."""
    evidence: tuple[Statement, ...]


@dataclass(frozen=True)
class Proposal:
    """What a budget, or the budget that a target loss needs, is best spent on."""

    flops: float | None
    """The budget the alternatives are for; None where no fit can be used."""
    optimum: OptimumForecast | None
    """Best parameters and tokens by every fit."""
    needed: ReachForecast | None
    """FLOPs that the target loss needs by every fit; None if none was asked."""
    params: float | None
    """The parameters the alternatives aim at: the geometric middle of the band."""
    alternatives: tuple[Alternative, ...]
    statements: tuple[Statement, ...]


def for_budget(flops: float, means: Means, bound: Bound, *, unique: float | None = None) -> Proposal:
    """Parameters, tokens and shapes for a compute budget.

    Args:
        flops: training FLOPs.
        means: family, device and prices.
        bound: of the objective; for an upper bound nothing is proposed, and the statements say why.
        unique: different tokens at hand; None: as many as are needed.

    Raises:
        RequestError: the budget is too small for any network of this family and vocabulary.
    """
    best = forecast.optimum(flops, bound, unique=unique)
    if best.n is None:
        return Proposal(None, best, None, None, (), best.statements)
    params = middle(best.n)
    found = tuple(_alternative(style, flops, params, means, bound, unique) for style in STYLES)
    return Proposal(flops, best, None, params, found, (*best.statements, RULE))


def for_loss(target: float, means: Means, bound: Bound, *, unique: float | None = None) -> Proposal:
    """Parameters, tokens and shapes for a target loss, nats per token: those of the compute at which every fit that
    can reach it has reached it.

    Raises:
        RequestError: by no fit can it be reached, with the floors; otherwise as `for_budget`.
    """
    needed = forecast.flops_to_reach(target, bound)
    forecast.refuse_unreachable(target, needed)
    if needed.band is None:
        return Proposal(None, None, needed, None, (), needed.statements)
    found = for_budget(needed.band.high, means, bound, unique=unique)
    return Proposal(found.flops, found.optimum, needed, found.params, found.alternatives, found.statements)


def middle(band: Band) -> float:
    """The geometric middle of a band."""
    return math.sqrt(band.low * band.high)


def _alternative(
    style: str, flops: float, params: float, means: Means, bound: Bound, unique: float | None
) -> Alternative:
    dims = shape_of(params, STYLES[style], means)
    size = means.sizing(dims)
    per_token = means.flops_per_token(dims) if means.flops_per_token else FLOPS * size.total
    tokens, total = flops / per_token, means.total(dims) if means.total else None
    return Alternative(
        style,
        dims,
        size,
        total,
        tokens,
        forecast.loss(size, tokens, bound, unique=unique, total=total),
        _bill(flops, means),
        means.memory(dims) if means.memory else None,
        evidence.of(dims),
    )


def _bill(flops: float, means: Means) -> Bill | None:
    if means.device is None:
        return None
    shares = {"utilisation": means.utilisation, "count": means.count, "price": means.price}
    return bill(flops, means.device, means.arithmetic, **shares)


def shape_of(params: float, ratio: float, means: Means) -> Dims:
    """The widths nearest to `params` parameters, among the depths at which width per layer is within a factor `LEEWAY`
    of `ratio`; where there are none, at the depth where it comes nearest.

    Raises:
        RequestError: even one layer of the least width has more.
    """
    solve = functools.cache(lambda n_layers: _solved(params, n_layers, means))
    if solve(1) is None:
        least = means.sizing(_shape(1, 1, means).resolve(lambda dims: Size(1, 1))).total
        raise RequestError(
            f"budget: it calls for {params:,.0f} parameters; the smallest network of this family and vocabulary has "
            f"{least:,}; allowed: a larger budget, or a smaller vocabulary"
        )
    low, high = _depth(solve, ratio * LEEWAY), _depth(solve, ratio / LEEWAY)
    tried = filter(None, map(solve, range(max(1, low - 1), high + 1)))
    off = {dims: abs(math.log(dims.dim / dims.n_layers / ratio)) for dims in tried}
    near = [dims for dims in off if off[dims] <= math.log(LEEWAY)] or [min(off, key=off.get)]
    return min(near, key=lambda dims: abs(math.log(means.sizing(dims).total / params)))


def _depth(solve: Callable[[int], Dims | None], ratio: float) -> int:
    """The least depth at which width per layer is no more than `ratio`."""

    def thin(n_layers: int) -> bool:
        dims = solve(n_layers)
        return dims is None or dims.dim / n_layers <= ratio

    return bisect.bisect_left(range(DEEPEST), True, lo=1, key=thin)


def _solved(params: float, n_layers: int, means: Means) -> Dims | None:
    """The widths at a depth; None where even the least width has too many parameters."""
    try:
        return _shape(round(params), n_layers, means).resolve(means.sizing)
    except RequestError:
        return None


def _shape(params: int, n_layers: int, means: Means) -> BudgetShape:
    if means.like is None:
        return BudgetShape(params=params, n_layers=n_layers, head_dim=64)
    like = means.like
    return BudgetShape(
        params=params,
        n_layers=n_layers,
        head_dim=like.head_dim,
        queries_per_kv_head=like.n_heads // like.n_kv_heads,
        hidden_ratio=like.hidden / like.dim,
    )
