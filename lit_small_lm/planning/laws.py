"""Published fits of the loss of next-token models to parameters N and tokens D, as data, and what follows from each.

Hoffmann et al. (Chinchilla, arXiv 2203.15556), Besiroglu et al. (its replication, arXiv 2404.10102), Muennighoff et al.
(repeated data, arXiv 2305.16264) and, apart from them, Kaplan et al. (arXiv 2001.08361). The one trick is to use
several: each is nats per token of one corpus and tokenizer, so that only what they say together means something for
another (`forecast` makes the bands). Every inverse below is closed, or a search of one variable where data repeat.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lit_small_lm.errors import RequestError, not_known
from lit_small_lm.plugin import Size

Counts = Literal["total", "non_embedding"]
"""Which parameters a fit means by N."""
FLOPS = 6
"""Training FLOPs of a parameter and a token in C = 6 N D, the cost that every fit here was made with."""


@dataclass(frozen=True)
class Point:
    """A number of parameters and of training tokens."""

    n: float
    d: float

    @property
    def ratio(self) -> float:
        """Tokens per parameter."""
        return self.d / self.n


@dataclass(frozen=True)
class Reach:
    """What a target loss needs, or the floor that makes it impossible."""

    value: float | None
    """Tokens or FLOPs; None: out of reach."""
    floor: float
    """The loss that is approached, never reached, nats per token."""
    at: str
    """What the floor belongs to, in words."""

    def __str__(self) -> str:
        return f"floor {self.floor:.4g} nats per token {self.at}" if self.value is None else f"{self.value:.4g}"


@dataclass(frozen=True)
class Repetition:
    """How the value of repeated tokens, and of parameters beyond those that unique tokens can feed, fades."""

    tokens: float
    """R_D*: repetitions at which a repeated token has lost 1 - 1/e of its value."""
    parameters: float
    """R_N*: the same for excess parameters."""

    @staticmethod
    def worth(unique: float, amount: float, fading: float) -> float:
        """`amount`, of which only `unique` counts fully, in units that count fully."""
        repeats = max(amount / unique - 1, 0.0)
        return min(amount, unique) + unique * fading * -math.expm1(-repeats / fading)

    @staticmethod
    def amount(unique: float, worth: float, fading: float) -> float | None:
        """The inverse of `worth`; None where no amount is worth so much."""
        if worth <= unique:
            return worth
        left = 1 - (worth / unique - 1) / fading
        return unique * (1 - fading * math.log(left)) if left > 0 else None


@dataclass(frozen=True, kw_only=True)
class AdditiveFit:
    """L(N, D) = e + a / N^alpha + b / D^beta, nats per token."""

    name: str
    source: str
    corpus: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Published standard errors, by constant; none published: empty."""
    repetition: Repetition | None = None
    """Known where the fit covers repeated data; elsewhere every token is taken for a new one."""
    counts: Counts = "total"

    def loss(self, n: float, d: float, unique: float | None = None) -> float:
        """Predicted nats per token of n parameters after d tokens; they repeat once all `unique` ones are seen."""
        if unique is not None and self.repetition is not None and d >= unique:
            fed = min(n, self.parameters_for(unique))
            n = self.repetition.worth(fed, n, self.repetition.parameters)
            d = self.repetition.worth(unique, d, self.repetition.tokens)
        return self.e + self.a / n**self.alpha + self.b / d**self.beta

    def optimum(self, flops: float) -> Point:
        """The parameters and tokens of least loss for C = 6 N D, tokens all different."""
        n = self._balance() * (flops / FLOPS) ** (self.beta / (self.alpha + self.beta))
        return Point(n, flops / FLOPS / n)

    def optimum_repeating(self, flops: float, unique: float) -> Point:
        """The same where tokens beyond `unique` are repeated; found by golden section over the tokens."""
        free = self.optimum(flops)
        if self.repetition is None or free.d <= unique:
            return free
        pairs = flops / FLOPS
        found = _least(lambda log_d: self.loss(pairs / math.exp(log_d), math.exp(log_d), unique),
                       math.log(unique), math.log(free.d * self.repetition.tokens))  # fmt: skip
        return Point(pairs / math.exp(found), math.exp(found))

    def tokens_for(self, n: float) -> float:
        """The tokens at which n parameters are the optimum of the compute they take."""
        return (n / self._balance()) ** (self.alpha / self.beta) / self._balance()

    def parameters_for(self, d: float) -> float:
        """The parameters at which d tokens are the optimum of the compute they take."""
        return (d * self._balance()) ** (self.beta / self.alpha) * self._balance()

    def floor(self, n: float | None = None) -> float:
        """The loss that n parameters approach with ever more tokens; None: however many parameters."""
        return self.e if n is None else self.e + self.a / n**self.alpha

    def tokens_to_reach(self, loss: float, n: float, unique: float | None = None) -> Reach:
        """Tokens after which n parameters are predicted to have this loss."""
        floor = self.floor(n)
        if loss <= floor:
            return Reach(None, floor, f"at {n:.4g} parameters")
        d = (self.b / (loss - floor)) ** (1 / self.beta)
        if unique is None or self.repetition is None or d <= unique:
            return Reach(d, floor, f"at {n:.4g} parameters")
        return self._repeating_to_reach(loss, n, unique)

    def flops_to_reach(self, loss: float) -> Reach:
        """The least compute 6 N D that is predicted to have this loss, at its optimal N and D."""
        if loss <= self.e:
            return Reach(None, self.e, "at any size")
        both = self.alpha + self.beta
        at_one = self.loss(*dataclasses.astuple(self.optimum(1.0))) - self.e  # the rest falls as a power of C
        return Reach((at_one / (loss - self.e)) ** (both / (self.alpha * self.beta)), self.e, "at any size")

    def _repeating_to_reach(self, loss: float, n: float, unique: float) -> Reach:
        fed, fading = min(n, self.parameters_for(unique)), self.repetition
        worth = fading.worth(fed, n, fading.parameters)
        where, base = f"at {n:.4g} parameters with {unique:.4g} unique tokens", self.e + self.a / worth**self.alpha
        most = unique * (1 + fading.tokens)
        needed = (self.b / (loss - base)) ** (1 / self.beta) if loss > base else math.inf
        d = fading.amount(unique, needed, fading.tokens)
        return Reach(d, base + self.b / most**self.beta, where)

    def _balance(self) -> float:
        return (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))


@dataclass(frozen=True, kw_only=True)
class KaplanFit:
    """L(N, D) = [(n_c / N)^(alpha_n / alpha_d) + d_c / D]^alpha_d, nats per token; N leaves out embeddings.

    The law of N alone is a fit of its own with another n_c: the two must not be mixed.
    """

    name: str
    source: str
    corpus: str
    n_c: float
    d_c: float
    alpha_n: float
    alpha_d: float
    n_c_alone: float
    """n_c of L(N) = (n_c / N)^alpha_n, trained to convergence."""
    counts: Counts = "non_embedding"

    def loss(self, n: float, d: float) -> float:
        """Predicted nats per token of n parameters after d tokens, all different."""
        return ((self.n_c / n) ** (self.alpha_n / self.alpha_d) + self.d_c / d) ** self.alpha_d

    def converged(self, n: float) -> float:
        """Predicted nats per token of n parameters at convergence."""
        return (self.n_c_alone / n) ** self.alpha_n


HOFFMANN = AdditiveFit(
    name="hoffmann",
    source="Hoffmann et al. 2022, arXiv 2203.15556, constants of its TeX source",
    corpus="MassiveText, SentencePiece of 32,000",
    e=math.exp(0.5267228),
    a=math.exp(6.0073404),
    b=math.exp(6.0179186),
    alpha=0.33917084,
    beta=0.2849083,
)
BESIROGLU = AdditiveFit(
    name="besiroglu",
    source="Besiroglu et al. 2024, arXiv 2404.10102: the same runs fitted again, read off the paper's figure",
    corpus=HOFFMANN.corpus,
    e=1.8172,
    a=482.01,
    b=2085.43,
    alpha=0.3478,
    beta=0.3658,
    errors={"e": 0.03, "a": 124.58, "b": 1293.23, "alpha": 0.02, "beta": 0.02},
)
MUENNIGHOFF = AdditiveFit(
    name="muennighoff",
    source="Muennighoff et al. 2023, arXiv 2305.16264",
    corpus="C4, GPT-2 tokenizer",
    e=math.exp(0.6254804),
    a=math.exp(6.255414),
    b=math.exp(7.3049974),
    alpha=0.3526596,
    beta=0.3526596,
    repetition=Repetition(tokens=15.387756, parameters=5.309743),
)
KAPLAN = KaplanFit(
    name="kaplan",
    source="Kaplan et al. 2020, arXiv 2001.08361, its joint law",
    corpus="WebText2, byte-pair encoding of 50,257",
    n_c=6.4e13,
    d_c=1.8e13,
    alpha_n=0.076,
    alpha_d=0.103,
    n_c_alone=8.8e13,
)
FITS = (HOFFMANN, BESIROGLU, MUENNIGHOFF)
"""The fits that bands are made of."""
REFUSED = {
    "hoffmann_rounded": "the constants printed in arXiv 2203.15556, rounded to two digits, call for 92.6 tokens a "
    "parameter at 5.76e23 FLOPs, the same ones of its TeX source for 58.9; use hoffmann"
}
"""Fits that are known and never used, with the reason."""


def fit(name: str) -> AdditiveFit | KaplanFit:
    """The fit of this name.

    Raises:
        RequestError: it is refused, saying why, or not known.
    """
    known = {each.name: each for each in (*FITS, KAPLAN)}
    if name in REFUSED:
        raise RequestError(f"fit: {name}: {REFUSED[name]}")
    if name not in known:
        raise not_known("fit", name, known, "fit")
    return known[name]


def counted(law: AdditiveFit | KaplanFit, size: Size) -> int:
    """The parameters of a network as the fit counts them."""
    return size.total if law.counts == "total" else size.non_embedding


def _least(f, low: float, high: float, tolerance: float = 1e-10) -> float:
    """Where f, with one minimum between low and high, is least: golden section."""
    share = (math.sqrt(5) - 1) / 2
    while high - low > tolerance:
        left, right = high - share * (high - low), low + share * (high - low)
        low, high = (low, right) if f(left) < f(right) else (left, high)
    return (low + high) / 2
