"""Calls written down: operators, slices, changes in place, sizes by letter, lists of equal parameters."""

import pytest
import torch
from torch import nn

from lit_small_lm.planning.listing import Call, Names, is_in_place, prime, saying, telling, variable, written
from lit_small_lm.planning.statement import Statement


@pytest.fixture
def names():
    return Names(rows=101, positions=103, widths={206, 384})


def line(names, call):
    return " ".join(written(call, names).split())


def made(names, *shape, called):
    tensor = torch.empty(shape, device="meta")
    names.give(tensor, called)
    return tensor


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (103, "T"),
        (101, "B"),
        (101 * 103, "BT"),
        (2 * 101 * 103, "2BT"),
        (106, "T+3"),
        (206, "206"),
        (309, "3T"),
        (7, "7"),
    ],
)
def test_sizes(names, size, said):
    assert names.size(size) == said


def test_operators_and_slices(names):
    a, b = made(names, 101, 103, 384, called="a"), made(names, 384, called="b")
    assert line(names, Call("mul", (a, b), {}, [a * b])) == "h1 = a * b # (B, T, 384)"
    assert line(names, Call("__rsub__", (a, 1.0), {}, [1 - a])) == "h2 = 1.0 - a # (B, T, 384)"
    sliced = Call("__getitem__", (a, (slice(None), slice(0, 7), None)), {}, [a[:, :7, None]])
    assert line(names, sliced) == "h3 = a[:, 0:7, None] # (B, 7, 1, 384)"
    assert line(names, Call("__setitem__", (a, 0, b))) == "a[0] = b"
    assert line(names, Call("add_", (a, b))) == "add_(a, b)"
    assert line(names, Call("return", (a, b))) == "return a, b"
    assert line(names, Call("cat", ([a, a],), {"dim": -1}, [a])) == "a = cat([a, a], dim=-1) # (B, T, 384)"


def test_names_are_given_once(names):
    first, second = made(names, 1, called="q_proj"), made(names, 1, called="q_proj")
    assert (names.of(first), names.of(second)) == ("q_proj", "q_proj_2")
    assert names.of(torch.empty(1)) == "earlier"
    names.start()
    assert names.new(second) == "h1"


def test_equal_parameters_are_one(names):
    experts = [torch.empty(4, 8, device="meta") for _ in range(6)]
    names.parameters |= {id(expert): f"ffn.experts.{i}.up.weight" for i, expert in enumerate(experts)}
    assert line(names, Call("stack", (experts,))) == "stack([ffn.experts.{0..5}.up.weight[4, 8]])"
    assert line(names, Call("stack", (experts[:2],))).count("weight[4, 8]") == 2


def test_arguments_that_say_nothing_are_left_out():
    given = {"bias": None, "is_causal": False, "device": torch.device("meta"), "dim": 0}
    assert telling(torch.add, given) == {"is_causal": False, "dim": 0}  # built-in functions tell no defaults
    assert telling(torch.topk, {"largest": False}) == {"largest": False}  # its default is True and not told
    assert telling(nn.functional.embedding, {"norm_type": 2.0, "sparse": True}) == {"sparse": True}


@pytest.mark.parametrize("name", ["add_", "__setitem__", "__ior__", "copy_", "masked_fill_"])
def test_what_is_in_place(name):
    assert is_in_place(name)


@pytest.mark.parametrize("name", ["add", "__getitem__", "__invert__", "__rsub__", "__and__"])
def test_what_is_not_in_place(name):
    assert not is_in_place(name)


def test_a_module_says_what_it_is():
    class Twice(nn.Module):
        """Two times h (B, T, D),
        in one go. Nothing else."""

    assert saying(Twice()) == "Twice: Two times h (B, T, D), in one go"
    assert saying(nn.ReLU()) == "ReLU"


def test_variables():
    assert variable("mixer.qkv_proj") == "qkv_proj"
    assert variable("mixer_path.norm") == "mixer_path_norm"
    assert variable("close.0.norm") == "close_0_norm"


def test_primes():
    assert prime(127, {254, 113}) == 109
    assert prime(4, {6, 8}) == 4


def test_statements():
    assert str(Statement("a", "b", "c")) == "a [b]; but c"
    assert str(Statement("a")) == "a"
