"""Sizes that keep a file, a function and a config readable at one sitting."""

import ast
import dataclasses
import statistics

import pytest

from lit_small_lm.discovery import discover
from lit_small_lm.spec import Spec

FILE_LINES = 400
FUNCTION_LINES = 60
MEDIAN_LINES = 12
NESTING = 3
FIELDS = 9
"""About eight."""
MORE_FIELDS = {"BackboneSpec": 14}
"""The whole model is one value: what all layers share has no other place."""
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCK = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def functions(module):
    return [node for node in ast.walk(module.tree) if isinstance(node, FUNCTION)]


def length(function):
    """Lines from `def` to the end, docstring and comments included, decorators not."""
    return function.end_lineno - function.lineno + 1


def depth(node, above=0):
    """How many blocks lie inside each other at most; an `elif` is no deeper than its `if`."""
    deepest = above
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        inside = above + (isinstance(child, BLOCK) and not is_elif)
        deepest = max(deepest, depth(child, inside))
    return deepest


def test_files(modules):
    lines = {name: len(module.text.splitlines()) for name, module in modules.items()}
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}


def test_functions(modules):
    long = [(m.at(f), f.name, length(f)) for m in modules.values() for f in functions(m) if length(f) > FUNCTION_LINES]
    assert long == []


def test_median_function(modules):
    assert statistics.median(length(f) for m in modules.values() for f in functions(m)) <= MEDIAN_LINES


def test_nesting(modules):
    deep = [(m.at(f), f.name, depth(f)) for m in modules.values() for f in functions(m) if depth(f) > NESTING]
    assert deep == []


def test_fields_of_a_spec():
    discover()

    def below(cls):
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    specs = {cls for cls in below(Spec) if cls.__module__.startswith("lit_small_lm.")}
    assert len(specs) > 20
    counts = {cls.__qualname__: len(dataclasses.fields(cls)) for cls in specs}
    assert {name: count for name, count in counts.items() if count > MORE_FIELDS.get(name, FIELDS)} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return 1", 0),
        ("def f():\n    if a:\n        pass\n    elif b:\n        pass\n    elif c:\n        pass", 1),
        ("def f():\n for a in b:\n  with c:\n   if d:\n    while e:\n     pass", 4),
        ("def f():\n    if a:\n        pass\n    else:\n        if b:\n            pass\n        x = 1", 2),
    ],
)
def test_depth_counts_blocks(source, expected):
    assert depth(ast.parse(source).body[0]) == expected
