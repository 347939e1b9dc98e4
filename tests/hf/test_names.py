"""Joins of tensors: each turns theirs into ours as its module reads them, and back without a rest."""

import pytest
import torch

from lit_small_lm.errors import RunError
from lit_small_lm.hf.names import Entry, Fused, Grouped, HalfSplit, Same, Taps, Transposed, to_ours, to_theirs
from lit_small_lm.hf.tiling import split, tiled


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


@pytest.mark.parametrize(
    ("join", "theirs", "ours"),
    [
        (Same(), [rows(1, 2)], rows(1, 2)),
        (Grouped(2, (2, 1, 1)), [rows(1, 2, 3, 4), rows(5, 6), rows(7, 8)], rows(1, 2, 5, 7, 3, 4, 6, 8)),
        (Grouped(1, (1, 1)), [rows(1, 2), rows(3, 4)], rows(1, 2, 3, 4)),
        (Transposed(), [rows(1, 2, 3).view(1, 3)], rows(1, 2, 3).view(3, 1)),
        (Fused((2, 2), Grouped(2, (1, 1))), [rows(1, 2, 3, 4)], rows(1, 3, 2, 4)),
        (Taps(), [rows(1, 2, 3, 4, 5, 6).view(2, 1, 3)], rows(3, 2, 1, 6, 5, 4).view(2, 3)),
        (Taps(Fused((2, 2), Grouped(2, (1, 1)))), [rows(1, 2, 3, 4).view(4, 1, 1)], rows(1, 3, 2, 4).view(4, 1)),
        (HalfSplit(1, 4), [rows(9, 0, 1, 2, 3)], rows(9, 0, 2, 1, 3)),
        (HalfSplit(2, 2), [rows(9, 0, 1, 8, 2, 3)], rows(9, 0, 1, 8, 2, 3)),
        (HalfSplit(2, 6), [torch.arange(14.0)], rows(0, 1, 3, 5, 2, 4, 6, 7, 8, 10, 12, 9, 11, 13)),
    ],
    ids=str,
)
def test_there_and_back(join, theirs, ours):
    assert torch.equal(join.join(theirs), ours)
    again = join.split(ours)
    assert len(again) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(again, theirs, strict=True))


def test_maps_by_name():
    entries = [Entry("a", ("x",)), Entry("b.weight", ("y", "z"), Grouped(1, (1, 1)))]
    theirs = {"x": rows(1), "y": rows(2), "z": rows(3), "unused": rows(4)}
    ours = to_ours(entries, theirs)
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {"a": [1.0], "b.weight": [2.0, 3.0]}
    assert {name: tensor.tolist() for name, tensor in to_theirs(entries, ours).items()} == {
        "x": [1.0],
        "y": [2.0],
        "z": [3.0],
    }
    with pytest.raises(RunError, match="1 tensors are missing, first: z"):
        to_ours(entries, {"x": rows(1), "y": rows(2)})


@pytest.mark.parametrize(
    ("layers", "first", "pattern"),
    [
        ("a", "", "a"),
        ("aaaa", "", "a"),
        ("abab", "", "ab"),
        ("aab", "", "aab"),
        ("dddmmmmm", "ddd", "m"),
        ("sssssgsssssgss", "", "sssssg"),
        ("ccfccfccfcfcfcfc", "ccfccfc", "cf"),
        ("abcabcab", "", "abc"),
        ("xabab", "x", "ab"),
    ],
)
def test_the_shortest_beginning_and_pattern(layers, first, pattern):
    assert split(layers) == (tuple(first), tuple(pattern))


def test_ten_thousand_layers_of_no_pattern_take_no_time():
    layers = [str(number) for number in range(9_000)] + ["a"] * 1_000
    assert split(layers) == (tuple(layers[:9_000]), ("a",))


def test_kinds_in_use_keep_their_names():
    fields = tiled(["conv", "conv"], {"layer": "attention", "conv": "convolution"})
    assert fields == {"layer": "convolution", "more_layers": {}, "first": (), "pattern": ("layer",)}
    fields = tiled(["dense", "layer"], {"layer": "experts", "dense": "mlp", "unused": "x"})
    assert fields == {"layer": "experts", "more_layers": {"dense": "mlp"}, "first": (), "pattern": ("dense", "layer")}
