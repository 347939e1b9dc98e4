"""The analyses as PNG files, with the axes of the papers. The only module that needs matplotlib.

Layers count from 0, as everywhere in this package. Every figure is drawn twice, for a light and for a dark page.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.ticker import MaxNLocator

from lit_small_lm.analysis.states import by_size, rescaled

THEMES = {"light": "default", "dark": "dark_background"}
COLOUR, SECOND = "#3b82c4", "#d9822b"
SIMILAR = "viridis_r"
"""Yellow is low: similar, as in the papers."""
RISE = "loss rise (nats per token)"
RUN = "layers run (0: embedding)"


DOMINATES = 4.0
"""How often the second largest value the largest one has to be, to be shown the others again without it."""


class Plot(NamedTuple):
    """One figure."""

    draw: Callable[..., None]
    panels: Callable[[Mapping[str, Any]], int] = lambda result: 1
    """How many there are, one below the other: a page may be narrow."""


def drawn(name: str, result: Mapping[str, Any], theme: str) -> bytes:
    """The PNG of an analysis; the same result gives the same bytes."""
    plot = PLOTS[name]
    panels = plot.panels(result)
    with matplotlib.style.context(THEMES[theme]), matplotlib.rc_context(_look(theme)):
        figure = matplotlib.figure.Figure(figsize=(5.8, 3.4 * panels), layout="constrained", dpi=120)
        axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
        plot.draw(result, *axes)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _look(theme: str) -> dict[str, Any]:
    dark = {"figure.facecolor": "#16181c", "axes.facecolor": "#16181c", "savefig.facecolor": "#16181c"}
    plain = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 11}
    return {**plain, **(dark if theme == "dark" else {})}


def _bars(
    places: Sequence[Axes], values: Sequence[float], errors: Sequence[float], x: str, y: str, line: float = 0.0
) -> None:
    """Bars from zero; on a second panel the same, the scale made for all but the largest."""
    for axes in places:
        axes.bar(range(len(values)), _numbers(values), color=COLOUR, width=0.8)
        axes.errorbar(range(len(values)), _numbers(values), _numbers(errors), fmt="none", ecolor="0.5", capsize=2)
        axes.axhline(0, color="0.5", linewidth=0.8)
        if line:
            axes.axhline(line, color=SECOND, linestyle="--", linewidth=1)
        _label(axes, x, y)
    if len(places) > 1:
        _zoom(places[1], values, errors)


def _zoom(axes: Axes, values: Sequence[float], errors: Sequence[float] | None) -> None:
    """Cut the scale above the second largest value, or the largest one where only a line lies above them."""
    found, off = _numbers(values), _numbers(errors or [0.0] * len(values))
    largest = int(np.nanargmax(np.abs(found)))
    alone = _dominates(np.abs(found[np.isfinite(found)]))
    rest = (np.delete(part, largest) if alone else part for part in (found - off, found + off))
    low, high = next(rest), next(rest)
    axes.set_ylim(1.1 * min(0.0, np.nanmin(low)), 1.1 * max(0.0, np.nanmax(high)))
    axes.set_title(f"the same, scaled for {'all but the largest' if alone else 'the bars'}", fontsize=10)


def _panels(key: str) -> Callable[[Mapping[str, Any]], int]:
    """Two where one value, or the threshold, leaves nothing to be seen of the others."""

    def count(result: Mapping[str, Any]) -> int:
        values = [abs(value) for value in result[key] if value is not None]
        return 2 if _dominates(values) or 0 < DOMINATES * max(values, default=0.0) < result.get("threshold", 0.0) else 1

    return count


def _dominates(values: Sequence[float]) -> bool:
    """Whether the largest of some sizes leaves nothing to be seen of the others."""
    *_, second, first = [0.0, 0.0, *sorted(values)]
    return 0 < DOMINATES * second < first


def _line(
    axes: Axes, values: Sequence[float], errors: Sequence[float] | None, x: str, y: str, first: int = 0, **style: Any
) -> None:
    style = {"color": COLOUR, "marker": "o", "markersize": 3, "linewidth": 1.4, **style}
    errors = None if errors is None else _numbers(errors)
    axes.errorbar(range(first, first + len(values)), _numbers(values), errors, capsize=2, **style)
    _label(axes, x, y)


def _heat(
    axes: Axes, matrix: np.ndarray, x: str, y: str, label: str, colours: str, origin: str = "upper", **scale: Any
) -> None:
    image = axes.imshow(matrix, cmap=colours, origin=origin, aspect="auto", interpolation="nearest", **scale)
    axes.figure.colorbar(image, ax=axes, label=label)
    axes.spines[:].set_visible(False)
    _label(axes, x, y)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _logarithmic(axes: Axes, values: Sequence[float | None]) -> None:
    """Of values that have a logarithm; where none has, the scale stays."""
    if np.nanmax(_numbers(values), initial=0.0) > 0:
        axes.set_yscale("log")


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """What is not finite is left out."""
    found = np.array([np.nan if value is None else value for value in values], dtype=float)
    return np.where(np.isfinite(found), found, np.nan)


def _matrix(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.stack([_numbers(row) for row in rows])


def _removal(found: Mapping[str, Any], *axes: Axes) -> None:
    _bars(axes, found["rise"], found["rise_error"], "layer removed", RISE)


def _greedy(found: Mapping[str, Any], axes: Axes) -> None:
    _line(axes, [0.0, *found["rise"]], [0.0, *found["rise_error"]], "layers removed", RISE)
    for count, (layer, rise) in enumerate(zip(found["layers"], _numbers(found["rise"]), strict=True), 1):
        if np.isfinite(rise):
            axes.annotate(str(layer), (count, rise), (4, -9), textcoords="offset points", fontsize=8)


def _swap(found: Mapping[str, Any], axes: Axes) -> None:
    matrix = _matrix(found["rise"])
    np.fill_diagonal(matrix, np.nan)
    usual = np.nanmedian(np.abs(matrix)) if len(matrix) > 1 else 0.0
    scale = SymLogNorm(linthresh=usual) if usual > 0 else None  # the first layer is often missed a hundred times more
    _heat(axes, matrix, "layer", "layer", f"{RISE}, logarithmic", "viridis", norm=scale)


def triangle(sizes: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows of block sizes n over layers l (see `states.by_size`) -> (n, l), nothing where l + n is beyond the end."""
    found = np.full((len(sizes), len(sizes)), np.nan)
    for row, values in zip(found, sizes, strict=True):
        row[: len(values)] = _numbers(values)
    return found


def _angular(found: Mapping[str, Any], *axes: Axes) -> None:
    matrices = {name: triangle(by_size(found[name]["distance"])) for name in found}
    shown = np.stack([matrix for _, matrix in zip(axes, matrices.values(), strict=False)])
    finite = shown[np.isfinite(shown)]
    scale = {"vmin": finite.min(), "vmax": finite.max()} if finite.size else {}  # one for all panels
    for place, (name, matrix) in zip(axes, matrices.items(), strict=False):
        _heat(place, matrix, "layer l", "block size n", "angle, raw (units of pi)", SIMILAR, "lower", **scale)
        place.set_title({"last": "last token", "mean": "mean over tokens"}.get(name, name), fontsize=10)
        place.set_yticks(*_sizes(len(matrix)))


def _rescaled(found: Mapping[str, Any], axes: Axes) -> None:
    name = next(iter(found))
    matrix = triangle(rescaled(by_size(found[name]["distance"])))
    if len(matrix) > 1:
        matrix[-1] = np.nan  # one value alone has no scale
    _heat(axes, matrix, "layer l", "block size n", "rescaled row by row: 0 to 1 in each", SIMILAR, "lower")
    axes.set_yticks(*_sizes(len(matrix)))


def _sizes(depth: int) -> tuple[list[int], list[str]]:
    """Rows that are labelled, and the block sizes they stand for."""
    rows = list(range(0, depth, max(1, depth // 8)))
    return rows, [str(row + 1) for row in rows]


def _profile(found: Mapping[str, Any], axes: Axes) -> None:
    _line(axes, found["variance"], found["variance_error"], RUN, "output variance")
    _logarithmic(axes, found["variance"])
    axes.minorticks_off()


def _gradient(found: Mapping[str, Any], *places: Axes) -> None:
    for axes in places:
        _line(axes, found["norm"], None, "layer", "gradient norm")
        axes.set_ylim(bottom=0)
    if len(places) > 1:
        _zoom(places[1], found["norm"], None)


def _causal(found: Mapping[str, Any], axes: Axes) -> None:
    matrix = _matrix(found["score"])
    matrix[np.tril_indices(len(matrix))] = np.nan
    _heat(axes, matrix, "later layer l", "skipped layer s", "relative change of the update", "viridis")


def _usefulness(found: Mapping[str, Any], *axes: Axes) -> None:
    _bars(axes, found["rise"], found["rise_error"], "layer made affine", RISE, found["threshold"])


def _jacobian(found: Mapping[str, Any], axes: Axes, second: Axes) -> None:
    _line(axes, found["distance"], found["distance_error"], "layer", "|J - I| / sqrt(n)")
    _logarithmic(axes, found["distance"])
    _line(second, found["diagonal"], found["diagonal_error"], "layer", "mean of J's diagonal")
    second.axhline(1, color="0.5", linewidth=0.8)


def _lens(found: Mapping[str, Any], axes: Axes, second: Axes) -> None:
    _line(axes, found["loss"], found["loss_error"], RUN, "nats per token", label="loss")
    _line(
        axes,
        found["divergence"],
        found["divergence_error"],
        RUN,
        "nats per token",
        color=SECOND,
        label="KL(here || end)",
    )
    axes.legend(frameon=False)
    _line(second, found["overlap"], found["overlap_error"], RUN, "share of the end's top 5")
    second.set_ylim(0, 1.05)


def _outliers(found: Mapping[str, Any], axes: Axes, second: Axes) -> None:
    _line(axes, found["weights"]["largest"], None, "layer", "largest weight / deviation")
    activations = found["activations"]
    median = _numbers(activations["median"])
    ratio = _numbers(activations["largest"]) / np.where(median > 0, median, np.nan)
    _line(second, ratio, None, RUN, "largest / median activation")
    for place in (axes, second):
        place.set_ylim(bottom=0)


def _noise(found: Mapping[str, Any], *axes: Axes) -> None:
    _bars(axes, found["rise"], found["rise_error"], "layer with noise", RISE)


PLOTS: dict[str, Plot] = {
    "removal": Plot(_removal, _panels("rise")),
    "greedy": Plot(_greedy),
    "swap": Plot(_swap),
    "angular": Plot(_angular, len),
    "angular_rescaled": Plot(_rescaled),
    "profile": Plot(_profile),
    "gradient": Plot(_gradient, _panels("norm")),
    "causal": Plot(_causal),
    "usefulness": Plot(_usefulness, _panels("rise")),
    "jacobian": Plot(_jacobian, lambda result: 2),
    "lens": Plot(_lens, lambda result: 2),
    "outliers": Plot(_outliers, lambda result: 2),
    "noise": Plot(_noise, _panels("rise")),
}
