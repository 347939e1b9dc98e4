"""Losses, optima and needs as bands over the published fits of `laws`, and what cannot be said.

The one trick is to say how wrong such fits were elsewhere: the band of a loss is the lowest and highest prediction,
widened by what they missed on 34 runs that none was fitted on (tests/planning/transfer_runs.csv). Every function takes
the `bound` of an objective: the fits are of exact next-token losses, and an upper bound (masked diffusion) gets no
number, but what is known in words.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from lit_small_lm.errors import RequestError
from lit_small_lm.planning.laws import FITS, HOFFMANN, KAPLAN, MUENNIGHOFF, AdditiveFit, Point, Reach, counted
from lit_small_lm.planning.statement import Statement
from lit_small_lm.plugin import Size

Bound = Literal["exact", "upper"]


@dataclass(frozen=True)
class Band:
    """From the lowest to the highest of several answers."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "Band | None":
        """The band of these values; None of none."""
        values = list(values)
        return cls(min(values), max(values)) if values else None


@dataclass(frozen=True)
class LossForecast:
    """The predicted training-distribution loss of a run, nats per token."""

    by_fit: dict[str, float]
    """Fit -> its prediction; empty where none can be used."""
    apart: dict[str, float]
    """Predictions of another convention (Kaplan's), in no band."""
    between: Band | None
    """Lowest and highest of `by_fit`."""
    band: Band | None
    """`between`, widened by what such fits missed elsewhere."""
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class OptimumForecast:
    """The parameters and tokens that make the most of a compute budget, by every fit."""

    by_fit: dict[str, Point]
    n: Band | None
    d: Band | None
    ratio: Band | None
    """Tokens per parameter."""
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class TokensForecast:
    """The tokens at which a network is the optimum of the compute it takes, by every fit."""

    by_fit: dict[str, float]
    d: Band | None
    ratio: Band | None
    """Tokens per parameter."""
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class ReachForecast:
    """What a target loss needs, by every fit: tokens or FLOPs."""

    by_fit: dict[str, Reach]
    band: Band | None
    """Over the fits by which it can be reached; None where by none, or where no fit can be used."""
    statements: tuple[Statement, ...]


TRANSFER = Band(0.90, 1.21)
"""The least and the greatest true loss over a predicted one, of the three fits on those runs."""
TYPICAL = 0.074
"""How far they were off on average, nearly always too low."""
CORPORA = Statement(
    "a fit holds for its own corpus and tokenizer ("
    + "; ".join(f"{fit.name}: {fit.corpus}" for fit in (HOFFMANN, MUENNIGHOFF))
    + "); another corpus or tokenizer moves the loss, so take the band for what it is until a first run of your own",
    "; ".join(fit.source for fit in FITS),
    f"on 34 runs of another study (C4, another tokenizer) these fits were off by {TYPICAL:.1%} on average, mostly too "
    f"low, and the true loss was {TRANSFER.low:.2f} to {TRANSFER.high:.2f} times the predicted one",
)
DIFFUSION = (
    Statement(
        "no published fit can be used: those at hand predict an exact next-token loss, and this objective's loss is an "
        "upper bound of the negative log-likelihood"
    ),
    Statement(
        "masked diffusion gains from compute at the same rate as next-token training, about 16 times behind at equal "
        "loss",
        "Nie et al. 2024, arXiv 2410.18514",
        "the factor is quoted from later work, and a bound is compared with an exact loss",
    ),
    Statement(
        "its best parameters and tokens both grow like the square root of compute, with 2 to 5 times the tokens of "
        "next-token training at equal compute, hence a smaller network",
        "Ni et al. 2025 (Quokka), arXiv 2510.03280",
        "known from its abstract; its constants were not at hand",
    ),
    Statement(
        "it draws value from repeated tokens for far longer: R_D* about 500 where next-token training has about 15",
        "Prabhudesai et al. 2025, arXiv 2507.15857",
        "known from its abstract",
    ),
)


def usable(bound: Bound) -> tuple[AdditiveFit, ...]:
    """The fits that may be used for an objective of this bound."""
    return FITS if bound == "exact" else ()


def about(bound: Bound) -> tuple[Statement, ...]:
    """What goes with every answer for an objective of this bound."""
    return (CORPORA,) if bound == "exact" else DIFFUSION


def about_experts(size: Size, total: Size | None) -> Iterator[Statement]:
    """What is to be said of a mixture of experts; nothing of another network."""
    if total is not None and total.total > size.total:
        yield Statement(
            f"N is the {size.total:,} active parameters of {total.total:,}: FLOPs follow the active ones, memory all",
            doubt="the fits are of dense networks; a mixture of experts lies below the loss of a dense network of its "
            "active size, and no published law with the number of experts was found whose constants can be used",
        )


def _about_repeats(fits: tuple[AdditiveFit, ...], tokens: float, unique: float | None) -> Iterator[Statement]:
    if fits and unique is not None and tokens > unique:
        blind = ", ".join(fit.name for fit in fits if fit.repetition is None)
        yield Statement(
            f"every token is seen {tokens / unique:.1f} times; up to 4 times is nearly as good as new ones, and the "
            "value fades from there",
            MUENNIGHOFF.source,
            f"{blind} take every token for a new one, so that the low end of the band is too low",
        )


def loss(
    size: Size, tokens: float, bound: Bound, *, unique: float | None = None, total: Size | None = None
) -> LossForecast:
    """The loss predicted for a network after `tokens`.

    Args:
        size: its parameters, the active ones of a mixture of experts.
        tokens: training tokens, repetitions counted.
        bound: of the objective.
        unique: different tokens among them; None: all.
        total: all parameters, where they are more than the active ones.
    """
    fits = usable(bound)
    found = {fit.name: fit.loss(counted(fit, size), tokens, unique) for fit in fits}
    apart = {KAPLAN.name: KAPLAN.loss(counted(KAPLAN, size), tokens)} if fits else {}
    between = Band.over(found.values())
    band = between and Band(between.low * TRANSFER.low, between.high * TRANSFER.high)
    notes = [*about(bound), *_about_repeats(fits, tokens, unique), *about_experts(size, total)]
    return LossForecast(found, apart, between, band, tuple(notes))


def optimum(flops: float, bound: Bound, *, unique: float | None = None) -> OptimumForecast:
    """The best parameters and tokens for a budget C = 6 N D; with `unique` tokens, repetitions are weighed where the
    fit knows them."""
    fits = usable(bound)
    points = {f.name: f.optimum(flops) if unique is None else f.optimum_repeating(flops, unique) for f in fits}
    bands = (Band.over(getattr(point, field) for point in points.values()) for field in ("n", "d", "ratio"))
    return OptimumForecast(points, *bands, about(bound))


def tokens_for(size: Size, bound: Bound, *, total: Size | None = None) -> TokensForecast:
    """The tokens at which a network is the optimum of the compute it takes; all of them different."""
    found = {fit.name: fit.tokens_for(counted(fit, size)) for fit in usable(bound)}
    d = Band.over(found.values())
    ratio = d and Band(d.low / size.total, d.high / size.total)
    return TokensForecast(found, d, ratio, (*about(bound), *about_experts(size, total)))


def fed(tokens: float, found: TokensForecast) -> Statement | None:
    """How `tokens` compare with those at which the network is at its optimum; None where no fit can be used."""
    if found.d is None:
        return None
    shares = f"{tokens / found.d.high:.2g} to {tokens / found.d.low:.2g} times"
    if tokens < found.d.low:
        text = (
            f"{tokens:.3g} tokens are {shares} what this network wants: a smaller one would do better on this compute"
        )
    elif tokens <= found.d.high:
        text = f"{tokens:.3g} tokens are {shares} what this network wants: the fits do not agree on which side of it"
    else:
        text = f"{tokens:.3g} tokens are {shares} what this network wants: a larger one would do better on this compute"
    return Statement(text, doubt="a small network that is used a lot is worth more tokens than that")


def tokens_to_reach(target: float, size: Size, bound: Bound, *, unique: float | None = None) -> ReachForecast:
    """The tokens after which a network is predicted to have this loss, nats per token."""
    return _reached(bound, lambda fit: fit.tokens_to_reach(target, counted(fit, size), unique))


def flops_to_reach(target: float, bound: Bound) -> ReachForecast:
    """The least compute 6 N D that is predicted to have this loss, nats per token, tokens all different."""
    return _reached(bound, lambda fit: fit.flops_to_reach(target))


def _reached(bound: Bound, need: Callable[[AdditiveFit], Reach]) -> ReachForecast:
    found = {fit.name: need(fit) for fit in usable(bound)}
    return ReachForecast(found, Band.over(r.value for r in found.values() if r.value is not None), about(bound))


def refuse_unreachable(target: float, reached: ReachForecast) -> None:
    """Raise RequestError, with the floors, if fits are there and by none the target can be reached."""
    if reached.by_fit and reached.band is None:
        floors = ", ".join(f"{name} {each.floor:.3f}" for name, each in reached.by_fit.items())
        where = next(iter(reached.by_fit.values())).at
        raise RequestError(
            f"target_loss: {target:.4g} nats per token is not reachable {where}; floors by fit: {floors}"
        )
