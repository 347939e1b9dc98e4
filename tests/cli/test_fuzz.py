"""Whatever is typed or written: it is taken, or refused in a few lines that a terminal can show."""

import random
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yaml import Node

from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.completion import words_of
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.yaml_tree import BadYAML
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError, request_lines

PIECES = [
    "1", "-1", "0.5", "nan", ".inf", "1e999", "9" * 400, "true", "null", "~", "", "x", "{", "[1,2]", "{a: b}", "- a",
    "{class_path: AdamW, init_args: {lr: 1e-4}}", "{class_path: [x]}", "{init_args: 3}", "{<<: {class_path: AdamW}}",
    "[[EarlyStopping]]", "[EarlyStopping, 3, null]", "AdamW", "a.yaml", "*a", "&", "!!python/x y", "!!int x",
    "\x1b[31m", "{a: 1, a: 2}", "{[a]: b}", "? a", "0x1f", "1:30", "2024-01-01", "{config: x}", "{lit_small_lm: 3}",
    "a: b", "é" * 400,
]  # fmt: skip


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(alphabet=string.printable + "é\x00\u2028\x1b", max_size=60))
@example("a: &a [*a]")
@example("? {a: b}\n: c")
@example("[" * 300)
@example("a: !!binary x")
@example("=: 3")
def test_any_text_is_yaml_or_refused(text):
    try:
        node = yaml_tree.compose(text)
    except BadYAML as error:
        assert error.problems
        return
    assert isinstance(node, Node)
    yaml_tree.data(node)


@pytest.fixture(scope="module")
def flags() -> list[str]:
    discover()
    return [word.name for word in words_of(roots())]


@settings(max_examples=300, deadline=None, database=None)
@given(seed=st.integers(0, 2**32), pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4))
@example(seed=0, pieces=["9" * 400])
def test_any_request_is_taken_or_refused_in_five_lines(flags, seed, pieces):
    draw, argv = random.Random(seed), []
    for piece in pieces:
        name = draw.choice(flags)
        at = draw.randrange(2, len(name))
        name = draw.choice([name, name, name[:at] + name[at + 1 :], name + "+", name + ".class_path", name + ".x"])
        argv += draw.choice([[f"{name}={piece}"], [name, piece], [piece]])
    try:
        check_request(["--model", "AutoregressiveLM", *argv], roots())
    except RequestError as error:
        lines = request_lines(error)
        assert len(lines) <= 5 and max(map(len, lines)) <= 300 and all(line.isprintable() for line in lines)
