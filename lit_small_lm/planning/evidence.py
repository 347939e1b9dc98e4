"""Depth against width: what was published about it, and where a shape lies in that. Heuristics, never a verdict.

The sources contradict each other, so every one is quoted with its doubt and none is averaged in. The one trick is to
compare by ratios: the nearest published shape is the one with the least factors of width and of depth between.
"""

import math
from dataclasses import dataclass

from lit_small_lm.planning.statement import Statement
from lit_small_lm.plugin import Dims


@dataclass(frozen=True)
class PublishedShape:
    """A shape somebody trained."""

    name: str
    dim: int
    n_layers: int

    @property
    def ratio(self) -> float:
        """Width per layer."""
        return self.dim / self.n_layers

    def distance(self, dims: Dims) -> float:
        """How far a shape is: the logarithms of the factors of width and of depth, as a length."""
        return math.hypot(math.log(dims.dim / self.dim), math.log(dims.n_layers / self.n_layers))


@dataclass(frozen=True)
class StudyShape(PublishedShape):
    """One of the seven GPT-2 shapes of the study, each trained once, on a billion tokens."""

    total: int
    """Parameters of the GPT-2 layout with 50,257 ids and 1,024 positions."""
    score: float
    """Mean benchmark accuracy as published, per cent."""
    tier: str
    """The study's own word for it."""

    @property
    def of_six_tasks(self) -> float:
        """The score as a mean of six tasks, if a seventh task near zero was averaged into the low ones."""
        return self.score * 7 / 6 if self.tier == "low" else self.score


@dataclass(frozen=True)
class Placement:
    """Where a shape lies in the evidence, in numbers."""

    ratio: float
    """Width per layer."""
    alike: PublishedShape
    """The released model whose width per layer is nearest."""
    nearest: StudyShape
    """The nearest shape of the study."""
    levine_width: float
    """The width up to which, at this depth, Levine's fit would rather spend parameters on width."""
    levine_ratio: float
    """Width over that: below 1 the shape is deeper than the fit favours."""
    critical_depth: float
    """The depth beyond which, at this width, loss rises by Fahim and Karim's rule."""


STUDY = (
    StudyShape("4 x 768", 768, 4, 67_736_832, 31.98, "low"),
    StudyShape("12 x 512", 512, 12, 64_085_504, 38.15, "high"),
    StudyShape("16 x 448", 448, 16, 61_603_136, 32.61, "low"),
    StudyShape("24 x 384", 384, 24, 62_279_808, 31.79, "low"),
    StudyShape("32 x 384", 384, 32, 76_475_520, 38.50, "high"),
    StudyShape("48 x 320", 320, 48, 75_592_640, 32.45, "low"),
    StudyShape("64 x 256", 256, 64, 63_673_088, 38.21, "high"),
)
RELEASED = (
    PublishedShape("Llama-3.2-1B", 2048, 16),
    PublishedShape("LFM2-350M", 1024, 16),
    PublishedShape("GPT-2", 768, 12),
    PublishedShape("Qwen3-0.6B", 1024, 28),
    PublishedShape("Gemma-3-270m", 640, 18),
    PublishedShape("MobileLLM-350M", 960, 32),
    PublishedShape("SmolLM2-135M and MobileLLM-125M", 576, 30),
    PublishedShape("Dhara-70M", 384, 32),
)
CRITICAL = (512, 16, 0.44)
"""Fahim and Karim: at a width of 512 loss rises beyond 16 layers, and that depth grows like the width to 0.44."""

HEURISTIC = Statement(
    "what follows is heuristics from other people's runs; it places the shape and decides nothing",
    doubt="the sources contradict each other; your own sweep over shapes at equal compute is worth more than all",
)
OTHERS = (
    Statement(
        "at equal parameters the shape moves the loss by a few per cent over a wide range of widths per layer",
        "Kaplan et al. 2020, arXiv 2001.08361",
        "counted without embeddings, which are most of a small network",
    ),
    Statement(
        "below a billion parameters deep and thin wins: 30 layers of 576 at 125M, 32 of 960 at 350M",
        "Liu et al. 2024 (MobileLLM), arXiv 2402.14905",
        "judged by zero-shot accuracy after far more tokens a parameter than most runs get",
    ),
    Statement(
        "at equal parameters (41M, 134M, 374M) deeper networks have the lower loss and compose better, with quickly "
        "diminishing returns, while time grows with every layer: shallower than usual costs little",
        "Petty et al. 2023, arXiv 2310.19956",
        "the width of the feed-forward network paid for the layers, a third way to spend parameters",
    ),
    Statement(
        "add depth before width, up to a point (DeepNarrow)",
        "Tay et al. 2021, arXiv 2109.10686",
        "T5 encoder-decoders judged after fine-tuning",
    ),
    Statement(
        "at 1e18 FLOPs a width of 64 per layer beat 128, and heads of 128 channels beat heads of 64",
        "nanochat, github.com/karpathy/nanochat, dev/LOG.md",
        "one code base, one budget, optimised by Muon",
    ),
)


def place(dims: Dims) -> Placement:
    """Where a shape lies in the evidence, in numbers."""
    ratio, width = dims.dim / dims.n_layers, levine_width(dims.n_layers)
    base_width, base_depth, exponent = CRITICAL
    return Placement(
        ratio,
        min(RELEASED, key=lambda shape: abs(math.log(shape.ratio / ratio))),
        min(STUDY, key=lambda shape: shape.distance(dims)),
        width,
        dims.dim / width,
        base_depth * (dims.dim / base_width) ** exponent,
    )


def levine_width(n_layers: int) -> float:
    """The width at which a depth becomes the better choice by the fit of arXiv 2006.12467."""
    return math.exp(5.039 + 0.0555 * n_layers)


def of(dims: Dims) -> tuple[Statement, ...]:
    """Every piece of evidence about a shape, with its source and doubt, the heuristics' own first."""
    found = place(dims)
    return (HEURISTIC, _released(found), _study(found, dims), _levine(found, dims), _critical(found, dims), *OTHERS)


def _released(found: Placement) -> Statement:
    low, high = (pick(RELEASED, key=lambda shape: shape.ratio) for pick in (min, max))
    return Statement(
        f"width per layer is {found.ratio:.1f}, nearest to {found.alike.name} ({found.alike.ratio:.1f}); small models "
        f"were released from {low.name} ({low.ratio:.0f}) to {high.name} ({high.ratio:.0f})",
        "their published configurations",
        "a released shape was chosen, seldom compared",
    )


def _study(found: Placement, dims: Dims) -> Statement:
    near, totals = found.nearest, [shape.total for shape in STUDY]
    low, factor = min(shape.of_six_tasks for shape in STUDY), math.exp(near.distance(dims))
    return Statement(
        f"of seven GPT-2 shapes near 70M the nearest is {near.name} (a factor of {factor:.1f} away): score "
        f"{near.score:.2f} %, tier {near.tier}",
        "codelion 2025, huggingface.co/blog/codelion/optimal-model-architecture",
        f"the shapes have {min(totals):,} to {max(totals):,} parameters, one seed each, and scores near chance; high "
        "scores look like means of six tasks, low ones like means of seven with one near zero: over six the low ones "
        f"are {low:.1f} and more, {near.of_six_tasks:.1f} here, and no tiers remain; the study's rule (width from 512 "
        "on, or 32 layers, or 64 and more) fails on its own 4 x 768",
    )


def _levine(found: Placement, dims: Dims) -> Statement:
    side = "deeper" if found.levine_ratio < 1 else "shallower"
    return Statement(
        f"width is {found.levine_ratio:.2f} of the {found.levine_width:,.0f} that go with {dims.n_layers} layers: "
        f"{side} than this fit favours",
        "Levine et al. 2020, arXiv 2006.12467: width = exp(5.039 + 0.0555 layers)",
        "the constants were seen second-hand (they give the abstract's width of 30K at 1T parameters); fitted on 6 to "
        "48 layers",
    )


def _critical(found: Placement, dims: Dims) -> Statement:
    side = "beyond" if dims.n_layers > found.critical_depth else "below"
    return Statement(
        f"{dims.n_layers} layers lie {side} {found.critical_depth:.0f}, the depth from which on more layers raised the "
        "loss at such a width",
        "Fahim and Karim 2026 (The Depth Delusion), arXiv 2601.20994: 16 layers at width 512, growing like width^0.44",
        "seen as an abstract; one group, one training recipe for all depths, and at odds with MobileLLM's 30 x 576",
    )
