"""A list of layers as a beginning and a pattern that repeats: the shortest pair of the two."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_small_lm.backbone import LayerSpec


def tiled(names: Sequence[str], kinds: Mapping[str, LayerSpec]) -> dict[str, Any]:
    """The fields `layer`, `more_layers`, `first` and `pattern` of a BackboneSpec.

    Args:
        names: the kind of each layer.
        kinds: every kind by name. The one called "layer" keeps its name; where it is not used the first one takes it.
    """
    if "layer" not in names:
        old = names[0]
        names = ["layer" if name == old else name for name in names]
        kinds = {**kinds, "layer": kinds[old]}
    first, pattern = split(names)
    more = {name: kinds[name] for name in kinds if name in names and name != "layer"}
    return {"layer": kinds["layer"], "more_layers": more, "first": first, "pattern": pattern}


def split(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(first, pattern) with as few names as possible, of which `pattern` repeats to the end.

    The period of every ending comes from the borders of the reversed list (Knuth, Morris and Pratt), in linear time.
    """
    count = len(names)
    periods = [size - border for size, border in enumerate(_borders(names[::-1]), start=1)]
    costs = [count - size + period for size, period in enumerate(periods, start=1)]
    begin = count - 1 - max(range(count), key=lambda i: (-costs[i], i))
    return tuple(names[:begin]), tuple(names[begin : begin + periods[count - 1 - begin]])


def _borders(names: Sequence[str]) -> list[int]:
    """For every beginning of the list the length of the longest shorter beginning that also ends it."""
    borders = [0]
    for name in names[1:]:
        size = borders[-1]
        while size and names[size] != name:
            size = borders[size - 1]
        borders.append(size + (names[size] == name))
    return borders
