"""YAML as nodes that know their line. What a YAML reader accepts in silence and nobody means is refused here.

Refused: a key given twice in one mapping, tags, dotted keys, anchors that contain themselves. Nothing is ever
constructed but plain data, and `1e-3` is a number (PyYAML alone reads text, YAML 1.1).
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from lit_small_lm.errors import shown

MOST_NODES = 20_000
"""A config with more values than this is refused: anchors can make a small file explode."""
LARGEST = 1 << 20
"""Bytes of a config."""
SUFFIXES = (".yaml", ".yml", ".json")
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}
_NUMBERS = {
    "int": r"^[-+]?(?:0|[1-9][0-9_]{0,30}|0x[0-9a-fA-F]{1,30})$",
    "float": r"^(?:[-+]?(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a file, and on which line (None: with the whole of it)."""

    text: str
    line: int | None = None
    fatal: bool = False
    """Whether the rest of the file cannot be checked."""


class BadYAML(Exception):
    """A text that cannot be used as YAML; `problems` says why, `root` is what is left without them, if anything."""

    def __init__(self, *problems: Problem, root: Node | None = None) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems, self.root = problems, root


class _Loader(yaml.SafeLoader):
    """SafeLoader with numbers as people write them: 1e-3 is one, 1:30 and 2024-01-31 are not."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in rules
        if tag.removeprefix(_TAG) not in (*_NUMBERS, "timestamp", "value", "yaml")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list("-+0123456789."))


def read_file(path: Path) -> Node:
    """The root of a YAML file.

    Raises:
        BadYAML: it cannot be read, is empty, is not UTF-8, or is not YAML as this package takes it.
    """
    if state := unreadable(path):
        raise BadYAML(Problem(state))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadYAML(Problem(f"cannot be read: {error.strerror}")) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} (0x{data[error.start]:02x})"
        raise BadYAML(Problem(f"{byte} is not UTF-8; save it as UTF-8")) from None
    return compose(text)


def compose(text: str) -> Node:
    """The root node of a YAML text. Raises BadYAML."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        raise BadYAML(Problem(f"not valid YAML: {shown(what)}", mark.line + 1 if mark else None)) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = (str(error).splitlines() or ["nested too deeply"])[0]
        raise BadYAML(Problem(f"not valid YAML: {shown(first)}")) from None
    if root is None or (is_null(root) and not root.value):
        raise BadYAML(Problem("is empty; allowed: a mapping such as `trainer: {max_steps: 100}`"))
    problems = list(_problems(root))
    if problems:
        raise BadYAML(*problems, root=None if any(problem.fatal for problem in problems) else root)
    return root


def scalar(text: str) -> ScalarNode:
    """The node of one value typed on the command line."""
    tag = _Loader("").resolve(ScalarNode, text, (True, False)) if text else _TAG + "str"
    return ScalarNode(tag, text)


def pairs(node: MappingNode) -> list[tuple[str, Node, Node]]:
    """(key, key node, value node) of a mapping; of merged keys (`<<`) the mapping's own win."""
    return list({key.value: (key.value, key, value) for key, value in node.value}.values())


def is_null(node: Node) -> bool:
    """Whether a node is YAML's null."""
    return node.tag == _TAG + "null"


def data(node: Node) -> Any:
    """Plain data: None, bool, int, float, str, lists and dicts."""
    if isinstance(node, MappingNode):
        return {key: data(value) for key, _, value in pairs(node)}
    if isinstance(node, SequenceNode):
        return [data(item) for item in node.value]
    return node.value if node.tag == _TAG + "merge" else _Loader("").construct_object(node)


def infinite(node: Node) -> bool:
    """Whether a NaN or an infinity stands anywhere below."""
    if isinstance(node, MappingNode):
        return any(infinite(value) for _, _, value in pairs(node))
    if isinstance(node, SequenceNode):
        return any(infinite(item) for item in node.value)
    return node.tag == _TAG + "float" and not math.isfinite(data(node))


def line(node: Node) -> int:
    """The line a node begins on, from 1; 0 for a value typed on the command line."""
    return node.start_mark.line + 1 if node.start_mark else 0


def is_file_name(text: str) -> bool:
    """Whether a value is meant as the name of a YAML file rather than of a class."""
    return text.endswith(SUFFIXES) or "/" in text


def unreadable(file: Path) -> str:
    """Why a path cannot be read as a file, or nothing."""
    try:
        if not file.exists():
            return "does not exist"
        if file.is_dir():
            return "is a directory"
        if not file.is_file():
            return "is no regular file"  # a pipe or a device may never end
        size = file.stat().st_size
        return "" if size <= LARGEST else f"has {size:,} bytes, and a configuration at most {LARGEST:,}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _problems(root: Node) -> Iterator[Problem]:
    """Walk with a stack of (node, nodes above it): each node once for every place it stands in."""
    todo: list[tuple[Node, tuple[int, ...]]] = [(root, ())]
    count = 0
    while todo:
        node, above = todo.pop()
        count += 1
        if count > MOST_NODES or len(above) > 100:
            yield Problem("holds too many values or is nested too deeply for a config", fatal=True)
            return
        if id(node) in above:
            yield Problem("an anchor contains itself", line(node), fatal=True)
            return
        if node.tag not in _PLAIN:
            tag = node.tag.replace(_TAG, "!!")
            yield Problem(f"tag {shown(tag)} is refused; allowed: plain values, without tags", line(node))
            node.tag = _TAG + {MappingNode: "map", SequenceNode: "seq"}.get(type(node), "str")
        elif isinstance(node, ScalarNode) and not _constructs(node):
            yield Problem(f"{shown(node.value)} is not what its tag says", line(node))
            node.tag = _TAG + "str"
        if isinstance(node, MappingNode):
            yield from _key_problems(node)
            _merge(node)
        children = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            children = [value for _, value in node.value]
        todo.extend((child, (*above, id(node))) for child in reversed(children))


def _constructs(node: ScalarNode) -> bool:
    try:
        data(node)
    except (yaml.YAMLError, ValueError, KeyError):
        return False
    return True


def _key_problems(node: MappingNode) -> Iterator[Problem]:
    """Keys that are refused; those that name nothing are taken out."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            yield Problem("a key is a list or a mapping; allowed: a name", line(key))
        elif key.value in seen:
            text = f"{shown(key.value)}: given twice in one mapping, on lines {seen[key.value]} and {line(key)}"
            yield Problem(text, line(key))
        elif "." in key.value:
            nested = ": {".join(key.value.split(".")) + ": ..." + "}" * key.value.count(".")
            yield Problem(f"{shown(key.value)}: dotted keys are refused in YAML; nest it: {shown(nested)}", line(key))
        if isinstance(key, ScalarNode):
            seen.setdefault(key.value, line(key))
    node.value = [(k, v) for k, v in node.value if isinstance(k, ScalarNode) and "." not in k.value]
    for key, value in node.value:
        several = value.value if isinstance(value, SequenceNode) else [value]
        if key.tag == _TAG + "merge" and not all(isinstance(item, MappingNode) for item in several):
            yield Problem("<<: merges what is no mapping; allowed: a mapping, or a list of mappings", line(key))


def _merge(node: MappingNode) -> None:
    """Put the keys of merged mappings (`<<: *anchor`) before the mapping's own."""
    own = [(key, value) for key, value in node.value if key.tag != _TAG + "merge"]
    merged = [value for key, value in node.value if key.tag == _TAG + "merge"]
    sources = [item for value in merged for item in (value.value if isinstance(value, SequenceNode) else [value])]
    taken = [pair for source in reversed(sources) if isinstance(source, MappingNode) for pair in source.value]
    node.value = [*taken, *own]
