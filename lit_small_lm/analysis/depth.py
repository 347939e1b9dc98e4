"""Effective depth: how many of the layers there are do something, by four readings of the other analyses.

There is no one definition; the four are said beside their numbers, and they need not agree.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SMALL, NEAR = 0.01, 0.1
"""Shares of the loss: a rise that hardly counts, and how near the lens has to come."""


class Depth(NamedTuple):
    """One reading."""

    layers: float
    text: str


def effective(results: Mapping[str, Mapping[str, Any]], loss: float, depth: int) -> list[Depth]:
    """Every reading that the results allow."""
    found = []
    if _measured(results, "removal"):
        rises = results["removal"]["rise"]
        needed = sum(not rise <= SMALL * loss for rise in rises)  # without some layers the loss is not finite
        found.append(Depth(needed, "layers whose removal alone raises the loss by more than a hundredth"))
        text = "participation: (sum of rises)^2 / sum of their squares, over removals that raise the loss"
        found.append(Depth(participation(rises), text))
    if _measured(results, "greedy"):
        rises = results["greedy"]["rise"]
        free = next((count for count, rise in enumerate(rises) if not rise <= SMALL * loss), len(rises))
        rest = " (no more were tried)" if free == len(rises) else ""
        text = f"layers left when greedy removal would cost more than a hundredth of the loss{rest}"
        found.append(Depth(depth - free, text))
    if _measured(results, "usefulness"):
        share = results["usefulness"]["share"]
        found.append(Depth(share * depth, "layers that no affine map replaces within a tenth of the loss"))
    if _measured(results, "lens"):
        near = next(layer for layer, lost in enumerate(results["lens"]["loss"]) if lost <= (1 + NEAR) * loss)
        found.append(Depth(near, "layers until the logit lens is within a tenth of the loss"))
    return found


def participation(rises: Sequence[float]) -> float:
    """Between 1 (one layer bears it all) and their number (all bear the same); 0 where none rises. What is not finite
    is left out."""
    positive = [rise for rise in rises if 0 < rise < math.inf]
    squares = sum(rise * rise for rise in positive)
    return sum(positive) ** 2 / squares if squares else 0.0


def _measured(results: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return name in results and "unmeasured" not in results[name]
