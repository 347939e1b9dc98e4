"""Habits that a reader relies on, checked on the syntax trees."""

import ast

import pytest

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
SPEAKS = ("lit_small_lm.cli", "lit_small_lm.__main__")
"""The command line: the only rooms that print."""


def calls(module, name):
    """Calls of a plain name."""
    nodes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    return [node for node in nodes if isinstance(node.func, ast.Name) and node.func.id == name]


def lenient_loads(module):
    """Calls of any `load...` that pass `strict=False`, or a strictness decided elsewhere."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            given = [keyword for keyword in node.keywords if keyword.arg == "strict"]
            if "load" in name and any(not _is_true(keyword.value) for keyword in given):
                yield node


def _is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


def undocumented(module):
    """Public classes and functions of a module that have no docstring; methods are their class's business."""
    nodes = [node for node in module.tree.body if isinstance(node, (ast.ClassDef, *FUNCTION))]
    return [node for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)]


def test_no_drawer_for_leftovers(modules):
    leaves = {"utils", "util", "helpers", "misc", "common"}
    assert [name for name in modules if leaves & set(name.split("."))] == []


def test_no_hasattr(modules):
    assert [module.at(node) for module in modules.values() for node in calls(module, "hasattr")] == []


def test_every_load_is_strict(modules):
    assert [module.at(node) for module in modules.values() for node in lenient_loads(module)] == []


def test_only_the_command_line_prints(modules):
    quiet = [m for name, m in modules.items() if not any(f"{name}.".startswith(f"{room}.") for room in SPEAKS)]
    assert [module.at(node) for module in quiet for node in calls(module, "print")] == []


def test_every_module_says_what_it_is(modules):
    assert [name for name, module in modules.items() if not ast.get_docstring(module.tree)] == []


def test_public_classes_and_functions_are_documented(modules):
    silent = [f"{module.at(node)} {node.name}" for module in modules.values() for node in undocumented(module)]
    assert silent == []


def test_public_classes_have_one_name_each(modules):
    """A class name means one thing in the whole package, so that a short name does too."""
    homes = {}
    for module in modules.values():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module.at(node))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("net.load_state_dict(x, strict=False)", 1),
        ("net.load_state_dict(x, strict=loose)", 1),
        ("net.load_state_dict(x, strict=True)", 0),
        ("zip(a, b, strict=False)", 0),
    ],
)
def test_lenient_loads_are_seen(make_graph, source, count):
    module = make_graph({"a": source}).modules["a"]
    assert len(list(lenient_loads(module))) == count


def test_silence_is_seen(make_graph):
    module = make_graph({"a": "class A: pass\ndef f(): pass\ndef _g(): pass\ndef h():\n    'Said.'"}).modules["a"]
    assert [node.name for node in undocumented(module)] == ["A", "f"]
