"""Heat maps over depth and step: a picture of each figure that `depth` has logged, made from metrics.jsonl.

Layers run upwards, measurements to the right, each as wide as the other however many steps lie between. Colours are
those of viridis at five places; grey is where nothing is known.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ANCHORS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float)
GREY = (200, 200, 200)
LEFT, EDGE = 28, 16
"""Pixels for the numbers of layers, and for the lines of text above and below."""
HEIGHT, WIDTH = 256, 512
"""Pixels that the cells fill, about."""
History = tuple[list[int], np.ndarray]
"""Steps, and values (layers, steps)."""


def heat_maps(file: Path) -> dict[str, np.ndarray]:
    """Name -> image (height, width, 3) of every figure by depth in a metrics.jsonl."""
    return {name: heat_map(values, steps, name) for name, (steps, values) in histories(file).items()}


def histories(file: Path) -> dict[str, History]:
    """`depth_NAME` -> its history; NaN where a layer has no such figure."""
    with open(file) as text:
        lines = [json.loads(line) for line in text if '"depth_' in line]
    found: dict[str, dict[int, dict[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            name, _, layer = key.partition("/")
            if name.startswith("depth_"):
                found.setdefault(name, {}).setdefault(line["step"], {})[int(layer)] = float(value)
    return {name: _table(columns) for name, columns in found.items()}


def _table(columns: dict[int, dict[int, float]]) -> History:
    rows = 1 + max(layer for column in columns.values() for layer in column)
    table = [[column.get(layer, math.nan) for column in columns.values()] for layer in range(rows)]
    return list(columns), np.array(table)


def heat_map(values: np.ndarray, steps: list[int], title: str) -> np.ndarray:
    """values (L, N) at N steps -> an image (height, width, 3) of bytes, with its range and its steps in words."""
    every = -(-values.shape[1] // WIDTH)
    values, steps = values[:, ::-every][:, ::-1], steps[::-every][::-1]  # the last one is always shown
    shares, said = scaled(values)
    layers, count = values.shape
    high, wide = max(4, HEIGHT // layers), min(64, max(1, WIDTH // count))
    cells = coloured(shares)[::-1].repeat(high, 0).repeat(wide, 1)
    width = max(LEFT + cells.shape[1], 12 + 6 * len(f"{title}: {said}"))
    canvas = np.full((cells.shape[0] + 2 * EDGE, width, 3), 255, dtype=np.uint8)
    canvas[EDGE:-EDGE, LEFT : LEFT + cells.shape[1]] = cells
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    draw.text((4, 2), f"{title}: {said}", fill=0)
    draw.text((4, EDGE), str(layers - 1), fill=0)
    draw.text((4, canvas.shape[0] - EDGE - 12), "0", fill=0)
    draw.text((LEFT, canvas.shape[0] - EDGE + 2), f"step {steps[0]} to {steps[-1]}", fill=0)
    return np.array(image)


def scaled(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values as shares 0 to 1 of their range, logarithmic where they are positive and span more than a factor of ten,
    and the range in words."""
    known = values[np.isfinite(values)]
    if not known.size:
        return np.full(values.shape, math.nan), "not finite"
    low, high = float(known.min()), float(known.max())
    said = f"{low:.3g} (dark) to {high:.3g}"
    if low > 0 and high > 10 * low:
        values, low, high, said = (
            np.log(np.where(values > 0, values, math.nan)),
            math.log(low),
            math.log(high),
            said + ", log",
        )
    shares = (np.where(np.isfinite(values), values, math.nan) - low) / (high - low if high > low else 1.0)
    return shares, said


def coloured(shares: np.ndarray) -> np.ndarray:
    """shares (L, N) from 0 to 1 -> colours (L, N, 3) of bytes."""
    places = np.linspace(0, 1, len(ANCHORS))
    known = np.isfinite(shares)
    channels = [np.interp(np.where(known, shares, 0), places, ANCHORS[:, channel]) for channel in range(3)]
    return np.where(known[..., None], np.stack(channels, -1), GREY).round().astype(np.uint8)
