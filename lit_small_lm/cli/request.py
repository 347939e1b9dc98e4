"""Checks a request, command line and YAML together, before it is parsed: every fault is named where it was written.

The walk keeps what each place holds (a class and the options given for it), because which options are allowed depends
on the classes chosen before. The outcome is also the request itself, spelled out: `Request.tree` holds every option of
every chosen class, so that no default of a class that was replaced can leak into its successor.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yaml import MappingNode, Node, ScalarNode, SequenceNode

from lit_small_lm import __version__
from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.part import Given, Part
from lit_small_lm.cli.schema import Option, Wrong, class_named, given_text, quoted, read
from lit_small_lm.cli.wording import FILE, NAME, VALUE, Report, elsewhere, no_class, unknown
from lit_small_lm.cli.words import has_value, next_value, typed_node
from lit_small_lm.cli.yaml_tree import BadYAML
from lit_small_lm.errors import one, path_of, request_lines, shown
from lit_small_lm.spec import known

__all__ = ["Request", "check_request", "request_lines"]

WRAPPERS = ("class_path", "init_args")
BASE = "configuration of the run"
NOWHERE = ScalarNode("tag:yaml.org,2002:str", "")
"""Stands for a key of the command line, which has no line number."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked request."""

    tree: dict[str, Any]
    """The request as plain data; every chosen class has all of its options."""
    passed: list[str]
    """Options that were not looked into; they come after it."""
    notices: list[str]
    """Options that were given and then dropped, a line each."""

    def spelled(self, command: str) -> dict[str, Any] | list[str]:
        """What to hand to the parser: plain data, read in half the time, of its own, since it changes it; or words if
        some were passed on."""
        if self.passed:
            return [command, *(["--config", json.dumps(self.tree)] if self.tree else []), *self.passed]
        return {"subcommand": command, command: copy.deepcopy(self.tree)}

    def with_tokenizer(self, spec: Mapping[str, Any]) -> "Request":
        """The same request for another tokenizer than the one it names; a notice says so."""
        data = self.tree.get("data", {})
        if data.get("tokenizer") == spec:
            return self
        tree = {**self.tree, "data": {**data, "tokenizer": dict(spec)}}
        kept = f"data.tokenizer: {spec['class_path'].rpartition('.')[2]}, that of the checkpoint, goes with its weights"
        return Request(tree, self.passed, [*self.notices, kept])


def check_request(
    argv: Sequence[str], roots: Mapping[str, Option], base: str = "", beside: Sequence[str] = ()
) -> Request:
    """Check `argv`, the part after the subcommand, and every YAML file it names.

    Args:
        argv: options as typed.
        roots: top-level name -> what it is, made by `schema.group`, `schema.slot` and `schema.plain`.
        base: a configuration, as YAML, that everything else is laid over (that of the run to go on with).
        beside: options that were taken out of `argv` before, such as "run_dir"; only named in suggestions.

    Raises:
        RequestError: something is wrong; its text holds one line a fault, the most important last. `request_lines`
            makes at most five lines of it.
    """
    if {"-h", "--help"} & set(argv):
        return Request({}, ["--help"], [])
    walk = _Walk(roots, beside)
    if base:
        walk.base(base)
    walk.options(argv)
    asks_for_help = any(word.split("=")[0].endswith(".help") for word in walk.passed)
    if not walk.report.faults and not asks_for_help:
        walk.missing()
    walk.report.finish()
    return Request(walk.root.tree(), walk.passed, walk.notices)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where values are being read from: a file, or an option of the command line."""

    name: str
    file: Path | None = None

    def where(self, path: tuple[str, ...], node: Node) -> str:
        """`demo.yaml:12: model.shape`, or the option as typed; for a value in braces also the key in it."""
        line, key = yaml_tree.line(node), ".".join(path)
        if not line:
            return self.name
        return ": ".join(filter(None, (f"{self.name}:{line}" if self.file else self.name, key)))


class _Walk:
    """One pass over a request, in the order it was given."""

    def __init__(self, roots: Mapping[str, Option], beside: Sequence[str]) -> None:
        self.beside = ("config", "print_config", "help", *beside)
        self.root = Part.root(roots)
        self.report = Report()
        self.notices: list[str] = []
        self.passed: list[str] = []
        self.sources: list[_Source] = []

    # ----------------------------------------------------------------------------------------------- command line
    def options(self, argv: Sequence[str]) -> None:
        """Take the options one by one; a value is the next word, or what stands after `=`."""
        words = list(argv)[::-1]
        while words:
            word = words.pop()
            name, equals, value = word.partition("=")
            if word.startswith("-c") or name == "--config":
                glued = value if name == "--config" else word[2:].removeprefix("=")
                self._config(name if name == "--config" else "-c", glued or next_value(words))
            elif name == "--print_config" or name.endswith(".help"):
                takes = name != "--print_config" and not equals and has_value(words)
                self.passed += [word, words.pop()] if takes else [word]
            elif name.startswith("--") and len(name) > 2:
                self._option(name, value if equals else None, words)
            else:
                self._stray(word, words)

    def _stray(self, word: str, words: list[str]) -> None:
        name, equals, _ = word.lstrip("-").partition("=")
        meant = f"; did you mean --{shown(name)}?" if name.split(".")[0] in self.root.options() else ""
        if meant and not equals:
            next_value(words)
        self.report.add(NAME, f"{shown(word)}: options begin with -- and take one value each{meant}")

    def _config(self, flag: str, value: str | None) -> None:
        self.sources.append(_Source(flag))
        if value is None:
            self.report.add(VALUE, f"{flag}: no value; allowed: a YAML file")
        else:
            self._file(self.root, value, (), NOWHERE)
        self.sources.pop()

    def _option(self, typed: str, value: str | None, words: list[str]) -> None:
        name = typed.removesuffix("+")
        self.sources.append(_Source(shown(name)))
        keys = tuple(name[2:].split("."))
        part, rest = self._reach(keys)
        if value is None and part is not None and part.option.flag:
            value = words.pop() if words and words[-1] in ("true", "false") else "true"
        elif value is None:
            value = next_value(words)
        if part is not None and value is None:
            self.report.add(VALUE, f"{shown(name)}: no value; allowed: {part.allowed()}")
        elif part is not None and part.is_opaque() and (rest or typed != name):
            self.passed.append(f"{typed}={value}")
        elif part is not None:
            self._typed(part, keys, value, adds=typed != name)
        self.sources.pop()

    def _typed(self, part: Part, keys: tuple[str, ...], value: str, adds: bool) -> None:
        path, before = tuple(key for key in keys if key not in WRAPPERS), part.tree() if adds else None
        if adds and not (part.option.form == "list" or (part.option.form == "leaf" and isinstance(before, list))):
            name = self.sources[-1].name
            self.report.add(NAME, f"{name}+: only a list can be added to; write {name}=")
            return
        try:
            node = typed_node(value, part)
        except BadYAML as error:
            self.report.add(VALUE, f"{self.sources[-1].name}: {error}; allowed: {part.allowed()}")
            return
        if keys[-1] == "class_path" and part.option.form == "slot":
            self._class(part, node, path)
        elif part.option.form == "list":
            self._list(part, node, path, adds)
        else:
            self.put(part, node, path)
        if adds and part.given and isinstance(part.given.value, list):
            part.given = dataclasses.replace(part.given, value=[*before, *part.given.value])

    def _reach(self, keys: tuple[str, ...]) -> tuple[Part | None, bool]:
        """The place an option names (None after a fault), and whether the option goes on below it."""
        part = self.root
        for i, key in enumerate(keys):
            if part.is_opaque():
                return part, True
            part = part.last() if part.option.form == "list" else part
            if part.option.form == "slot" and key in WRAPPERS:
                continue
            if not self._may_hold(part, key, keys[:i], NOWHERE, keys[i + 1 :]):
                return None, False
            part = part.part(key)
        return part, False

    def _may_hold(
        self, part: Part, name: str, path: tuple[str, ...], node: Node, below: tuple[str, ...] | None = None
    ) -> bool:
        """Whether `name` is an option of a place; a fault if not. `below`: the keys after it on the command line."""
        where, form = self.sources[-1].where((*path, name), node), part.option.form
        if part.broken or form == "table" or name in part.options():
            return not part.broken
        if form == "leaf":
            owner = ".".join(path)
            self.report.add(NAME, f"{where}: {owner} takes a value, it has no options; allowed: {part.allowed()}")
        elif form == "slot" and part.cls is None:
            kind, how = part.option.kind, "class_path" if below is None else f"--{'.'.join(path)}"
            choices = ", ".join(known(kind))
            self.report.add(NAME, f"{where}: choose {one(kind.__name__)} first, with {how}; known: {choices}")
        else:
            self._unknown_option(part, name, path, where, below)
        return False

    def _unknown_option(
        self, part: Part, name: str, path: tuple[str, ...], where: str, below: tuple[str, ...] | None
    ) -> None:
        owner = f"an option of {part.cls.__name__}" if part.cls else "an option"
        places, choices, prefix, suffix = list(elsewhere(self.root, name)), list(part.options()), "", ""
        if below is not None:
            prefix, suffix = "--" + "".join(f"{key}." for key in path), "".join(f".{key}" for key in below)
            choices += self.beside if part is self.root else ()
        self.report.add(NAME, unknown(where, name, choices, owner, prefix=prefix, suffix=suffix, places=places))

    # ------------------------------------------------------------------------------------------------------ files
    def base(self, text: str) -> None:
        """Lay a YAML text below everything else; a value that is a class's default does not count as given."""
        self.sources.append(_Source(BASE, Path("-")))
        try:
            self.put(self.root, yaml_tree.compose(text), ())
        except BadYAML as error:
            self._bad_file(error, self.root, ())
        self.root.forget_defaults()
        self.sources.pop()

    def _file(self, part: Part, typed: str, path: tuple[str, ...], node: Node) -> str:
        """Lay a YAML file over a place; a relative name is relative to the file that names it. Returns its name."""
        where, above = self.sources[-1].where(path, node), self.sources[-1].file
        file = (above.parent if above else Path()) / path_of(typed)
        chain, state = [source for source in self.sources if source.file], yaml_tree.unreadable(file)
        if state:
            resolved = shown(str(file.absolute()))
            self.report.add(FILE, f"{where}: {quoted(typed)} {state}; allowed: a YAML file (looked for {resolved})")
        elif any(source.file.resolve() == file.resolve() for source in chain):
            ring = " -> ".join([*(source.name for source in chain), shown(typed)])
            self.report.add(FILE, f"{where}: a file that includes itself: {ring}")
        else:
            self.sources.append(_Source(shown(str(file)), file))
            try:
                self.put(part, yaml_tree.read_file(file), path)
            except BadYAML as error:
                self._bad_file(error, part, path)
            self.sources.pop()
        return shown(str(file))

    def _bad_file(self, error: BadYAML, part: Part, path: tuple[str, ...]) -> None:
        """Name what is wrong with a file, and check what is left of it."""
        name = self.sources[-1].name
        for problem in error.problems:
            place = name if problem.line is None else f"{name}:{problem.line}"
            self.report.add(FILE, f"{place}: {problem.text}")
        if error.root is not None:
            self.put(part, error.root, path)

    # ----------------------------------------------------------------------------------------------------- values
    def put(self, part: Part, node: Node, path: tuple[str, ...]) -> None:
        """Check a value for a place, and keep it."""
        if part.option.form == "leaf":
            self._leaf(part, node, path)
        elif part.option.form == "slot":
            self._slot(part, node, path)
        elif part.option.form == "list":
            self._list(part, node, path)
        elif isinstance(node, ScalarNode) and yaml_tree.is_file_name(node.value):
            self._file(part, node.value, path, node)
        else:
            self._mapping(part, node, path)

    def _leaf(self, part: Part, node: Node, path: tuple[str, ...]) -> None:
        try:
            part.given = self._given(read(node, part.option, self.sources[-1].file is None), node, path)
        except Wrong as error:
            self.report.add(VALUE, f"{self.sources[-1].where(path, node)}: {error}")

    def _given(self, value: Any, node: Node, path: tuple[str, ...]) -> Given:
        source, chain = self.sources[-1], tuple(source.name for source in self.sources)
        return Given(value, node, source.where(path, node), chain, source.file is None)

    def _mapping(self, part: Part, node: Node, path: tuple[str, ...]) -> None:
        """Options of a group, of a table, or of the class in a slot."""
        if not isinstance(node, MappingNode):
            what = f"a mapping {'{...}'} of options" if part.option.form != "slot" else part.allowed()
            self.report.add(VALUE, f"{self.sources[-1].where(path, node)}: {given_text(node)}; allowed: {what}")
            return
        for name, key, value in yaml_tree.pairs(node):
            if part is self.root and name == "lit_small_lm":
                self._version(value)
            elif part is self.root and name == "config":
                for item in value.value if isinstance(value, SequenceNode) else [value]:
                    self._file(self.root, str(item.value), ("config",), item)
            elif self._may_hold(part, name, path, key):
                self.put(part.part(name), value, (*path, name))

    def _version(self, node: Node) -> None:
        """The version of this package that wrote a file; what a later one means by it is not known here."""
        where, found = self.sources[-1].where(("lit_small_lm",), node), re.match(r"(\d+)\.(\d+)", str(node.value))
        if not found:
            self.report.add(VALUE, f"{where}: {given_text(node)}; allowed: a version such as {__version__}")
        elif tuple(map(int, found.groups())) > tuple(map(int, __version__.split(".")[:2])):
            text = f"{shown(node.value)} wrote this, but this is lit-small-lm {__version__}; allowed: a file of "
            self.report.add(FILE, f"{where}: lit-small-lm {text}{__version__} or before; upgrade to read it")

    def _list(self, part: Part, node: Node, path: tuple[str, ...], adds: bool = False) -> None:
        """Classes in an order: one, several, or a plain word instead."""
        if not adds:
            part.restart()
        if self._is_word(part, node):
            part.given = self._given(yaml_tree.data(node), node, path)
            return
        for item in node.value if isinstance(node, SequenceNode) else [node]:
            self.put(part.append(), item, (*path[:-1], f"{path[-1]}[{len(part.parts) - 1}]"))

    def _is_word(self, part: Part, node: Node) -> bool:
        """Whether a value is one of those that may stand where a class would."""
        if not isinstance(node, ScalarNode):
            return False
        value = yaml_tree.data(node)
        if value is None:
            return part.option.optional
        return any(type(word) is type(value) and word == value for word in part.option.words)

    def _slot(self, part: Part, node: Node, path: tuple[str, ...]) -> None:
        if isinstance(node, MappingNode) and set(WRAPPERS) & {name for name, _, _ in yaml_tree.pairs(node)}:
            self._wrapped(part, node, path)
        elif not isinstance(node, ScalarNode):
            self._mapping(part, node, path)
        elif self._is_word(part, node):
            value = yaml_tree.data(node)
            self._changing(part, path, shown(node.value), lambda: part.choose(None, self._given(value, node, path)))
        elif yaml_tree.is_file_name(node.value):
            self._changing(part, path, shown(node.value), lambda: self._whole_file(part, node, path))
        else:
            self._class(part, node, path)

    def _whole_file(self, part: Part, node: ScalarNode, path: tuple[str, ...]) -> None:
        """A file is a complete value: what was said of this place before is gone."""
        part.restart()
        part.given = self._given(part.cls, node, path)
        part.file = self._file(part, node.value, path, node)

    def _wrapped(self, part: Part, node: MappingNode, path: tuple[str, ...]) -> None:
        """A mapping {class_path, init_args}, or one of the two."""
        found = {name: (key, value) for name, key, value in yaml_tree.pairs(node)}
        if "class_path" in found:
            self._class(part, found["class_path"][1], path)
        for name, (key, value) in found.items():
            where = self.sources[-1].where((*path, name), key)
            if name not in WRAPPERS:
                beside = " and ".join(wrapper for wrapper in WRAPPERS if wrapper in found)
                self.report.add(NAME, f"{where}: stands beside {beside}; put it into init_args")
            elif name == "init_args" and not yaml_tree.is_null(value) and not part.broken:
                self._mapping(part, value, path)

    def _class(self, part: Part, node: Node, path: tuple[str, ...]) -> None:
        kind, where = part.option.kind, self.sources[-1].where(path, node)
        name = node.value if isinstance(node, ScalarNode) else given_text(node)
        cls = class_named(kind, name) if isinstance(node, ScalarNode) else None
        if cls is not None:
            self._changing(part, path, cls.__name__, lambda: part.choose(cls, self._given(cls, node, path)))
            return
        part.broken = True
        slots = [option.kind for option in self.root.options().values() if option.form == "slot"]
        for weight, text in no_class(where, name, part.option, path, slots):
            self.report.add(weight, text)

    def _changing(self, part: Part, path: tuple[str, ...], what: str, change: Callable[[], None]) -> None:
        """Make a change, and note what was given before and is gone after it."""
        before, whole = dict(part.givens(path)), part.file
        change()
        after = dict(part.givens(path))
        for key, given in before.items():
            if key not in after and key != path and whole not in given.sources and given.sources[0] != BASE:
                self.notices.append(f"{given.where}: dropped, {'.'.join(path)} is now {what}")

    def missing(self) -> None:
        """A fault for every option that has no default and was not given."""
        for path, part in self.root.lacking(()):
            self.report.add(VALUE, f"--{'.'.join(path)}: not given; allowed: {part.allowed()}")
