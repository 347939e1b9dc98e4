"""Every analysis by name: what it shows, what it costs, and how it is run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lit_small_lm.analysis import extremes, influence, jacobian, removal, states
from lit_small_lm.analysis.lens import lens
from lit_small_lm.analysis.subject import Subject, Tell
from lit_small_lm.errors import RequestError, not_known


@dataclass(frozen=True)
class AnalysisSettings:
    """What the analyses may be told."""

    kind: str = "causal"
    """The objective's visibility."""
    greedy: int | None = None
    """Layers that greedy removal takes; None: half of them."""
    probes: int = 2
    """Random vectors for each row and layer, for Jacobians."""
    noise: float = 0.1
    """Noise in weights, as a share of their deviation."""
    noise_draws: int = 2

    def greedy_count(self, depth: int) -> int:
        """Layers that greedy removal takes of `depth`."""
        return min(depth, max(1, depth // 2) if self.greedy is None else self.greedy)


class Cost(NamedTuple):
    """How much of the network is run, over all questions."""

    layers: float
    heads: float


@dataclass(frozen=True)
class Analysis:
    """One analysis."""

    title: str
    text: str
    """How to read it."""
    how: str
    """Exact or estimated, and from what."""
    run: Callable[[Subject, AnalysisSettings, Tell], dict[str, Any]]
    cost: Callable[[int, AnalysisSettings], Cost]


def _swap_cost(depth: int, _: AnalysisSettings) -> Cost:
    pairs = depth * (depth - 1) / 2
    return Cost(pairs * 2 * depth / 3 + depth, pairs)


def _greedy_cost(depth: int, settings: AnalysisSettings) -> Cost:
    count = settings.greedy_count(depth)
    tried = removal.greedy_passes(depth, count)
    return Cost(tried * (depth - count / 2) / 2 + count * depth, tried + count)


PAIRED = "Exact on this text; standard errors of paired differences."
ANALYSES: dict[str, Analysis] = {
    "removal": Analysis(
        "Removal of one layer",
        "By how much the loss rises when one layer is left out and nothing is trained again. A bar near zero: the "
        "network does as well without that layer.",
        PAIRED,
        lambda subject, _, tell: removal.removed(subject, tell),
        lambda depth, _: Cost(depth * (depth + 1) / 2, depth),
    ),
    "greedy": Analysis(
        "Greedy removal",
        "Layers leave one after another, each time the one whose loss is missed least; its number stands at the point. "
        "How far the curve stays flat is how many layers the network can do without together. The choice is made on "
        "the same text, which flatters it a little.",
        PAIRED,
        lambda subject, settings, tell: removal.greedily_removed(subject, settings.greedy_count(subject.depth), tell),
        _greedy_cost,
    ),
    "swap": Analysis(
        "Swap of two layers",
        "By how much the loss rises when two layers change places, each with its own norm and factor. Small values: "
        "the order of these layers hardly matters. The permutation score is the mean over pairs of the rise's size "
        "over the loss.",
        PAIRED,
        lambda subject, _, tell: removal.swapped(subject, tell),
        _swap_cost,
    ),
    "angular": Analysis(
        "Angular distance between layers",
        "The angle, in units of pi, between the stream where layer l begins and where it is n layers later: 0 the same "
        "direction, 0.5 independent ones. Yellow is similar: those n layers turn the stream little. The scale is raw.",
        "Exact on this text; standard errors of means.",
        lambda subject, settings, tell: states.angular(subject, settings.kind, tell),
        lambda depth, _: Cost(depth, 1),
    ),
    "profile": Analysis(
        "Variance of the stream",
        "Variance over channels of the embedding (0) and after each layer. Under Pre-LN it grows with depth, and each "
        "layer's share of the stream shrinks. The table also has how much of it a layer adds (norm of the update over "
        "that of the stream) and Block Influence (1 - cosine of input and output).",
        "Exact on this text; token means with standard errors.",
        lambda subject, settings, tell: states.profiled(subject, settings.kind, tell),
        lambda depth, _: Cost(depth, 1),
    ),
    "gradient": Analysis(
        "Gradient by layer",
        "Norm of the loss's gradient by all weights of a layer, here and now; in training it says how hard each layer "
        "is pulled.",
        "Exact on this text.",
        lambda subject, _, tell: states.gradients(subject, tell),
        lambda depth, _: Cost(3 * depth, 3),
    ),
    "causal": Analysis(
        "Causal score",
        "By how much, relative to its size, the update of a later layer (across) changes when an earlier one (down) is "
        "skipped. Zeros: the later layer does not use what the earlier one wrote.",
        "Exact on this text; ratios of token means with standard errors.",
        lambda subject, _, tell: influence.caused(subject, tell),
        lambda depth, _: Cost(depth * (depth + 1) / 2, depth),
    ),
    "usefulness": Analysis(
        "Usefulness",
        "By how much the loss rises when the layer's best affine map stands in its place. Below a tenth of the loss "
        "(the line) the layer counts as replaceable.",
        "Exact on this text, but the maps are fitted on the same positions, which flatters them; standard errors of "
        "paired differences.",
        lambda subject, _, tell: influence.useful(subject, tell),
        lambda depth, _: Cost(depth * (depth + 3) / 2, depth),
    ),
    "jacobian": Analysis(
        "Jacobian's distance from the identity",
        "How far a layer's derivative is from doing nothing, |J - I| / sqrt(n), and the mean of its diagonal. A layer "
        "that passes the stream through has distance 0 and diagonal 1.",
        "Estimated with random vectors; standard errors include theirs.",
        lambda subject, settings, tell: jacobian.jacobians(subject, settings.probes, tell),
        lambda depth, settings: Cost(depth * (1 + 3 * settings.probes), 1),
    ),
    "lens": Analysis(
        "Logit lens",
        "What the network would predict if it ended after each layer: the loss, its divergence from the end's "
        "prediction, and the share of the end's five likeliest tokens that are there already.",
        "Exact on this text; token means with standard errors.",
        lambda subject, _, tell: lens(subject, tell),
        lambda depth, _: Cost(depth, 3 * depth + 4),
    ),
    "outliers": Analysis(
        "Outliers by depth",
        "Largest weight of a layer over its matrix's deviation, and largest activation of the stream over the median "
        "one. Large ratios are what low precision trips over. Kurtosis is 3 for a normal distribution.",
        "Exact; of activations, on this text.",
        lambda subject, _, tell: {
            "weights": extremes.outlying_weights(subject),
            "activations": extremes.outlying_activations(subject, tell),
        },
        lambda depth, _: Cost(depth, 1),
    ),
    "noise": Analysis(
        "Noise in one layer's weights",
        "By how much the loss rises when the matrices of one layer get random noise, a share of their own deviation. "
        "Small values: that layer can be stored coarsely.",
        "Estimated from a few draws of noise; standard errors over text, not over draws.",
        lambda subject, settings, tell: extremes.noised(subject, settings.noise, settings.noise_draws, tell),
        lambda depth, s: Cost(s.noise_draws * depth * (depth + 1) / 2 + depth, s.noise_draws * depth),
    ),
}
QUICK = ("removal", "angular", "profile", "gradient", "causal", "lens", "outliers")
"""Those whose cost does not grow beyond half the square of the depth."""


def chosen(only: str | None, skip: str | None) -> list[str]:
    """Names of the analyses asked for, in the order of the catalogue. Raises RequestError for one there is not."""
    names = _names("--only", only) if only is not None else list(ANALYSES)
    left = set(names) - set(_names("--skip", skip) if skip is not None else [])
    if not left:
        raise RequestError(f"--skip: {skip!r} leaves nothing of what was asked; known: {', '.join(ANALYSES)}")
    return [name for name in ANALYSES if name in left]


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ANALYSES:
            raise not_known(option, name, ANALYSES, "analysis")
    return names


def analysed(
    subject: Subject, settings: AnalysisSettings, names: Sequence[str], tell: Callable[[str, int, int], None]
) -> dict[str, dict[str, Any]]:
    """The results by name; one that the network has no room for is `{"unmeasured": why}`."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            found[name] = ANALYSES[name].run(subject, settings, lambda done, of, name=name: tell(name, done, of))
        except RequestError as error:
            found[name] = {"unmeasured": str(error)}
    return found


def rounded(value: Any, digits: int = 9) -> Any:
    """Plain data with numbers of `digits` places and None for what is not finite, so that it is JSON."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
