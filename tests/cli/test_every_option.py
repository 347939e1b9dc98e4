"""Every option of every command is checked as it declares itself: tests made from the declarations, by constraint.

A field of a Spec, an argument of a section or an option of a command that is added is covered with it: wrong values are
derived from its type, its choices and its range, and each has to be refused where it was written, with what is allowed.
The whole of it runs on the layer where requests are checked; a sample goes through `main`, drawn anew each day, its
seed in the test's name. All of them through `main`: `LIT_SMALL_LM_FAULTS=all pytest tests/cli/test_every_option.py`.

Which of these is a Spec's own business (a pair of fields that do not go together) is tested beside the Spec.
"""

import argparse
import datetime
import importlib
import math
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest

from lit_small_lm.__main__ import COMMANDS
from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.options import Number
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.schema import Option, alternatives, is_opaque, options_of, refined, slot
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import kinds, known
from lit_small_lm.spec import Spec, class_path

discover()
SEED = int(os.environ.get("LIT_SMALL_LM_SEED", datetime.date.today().toordinal()))
ALL = os.environ.get("LIT_SMALL_LM_FAULTS") == "all"
NUMBERS = {int, float}
ANY_NUMBER = {"EarlyStopping", "LearningRateFinder"}
"""Lightning's callbacks with an argument that any number will do for."""


class Fault(NamedTuple):
    """A wrong value: as YAML writes it, as a message shows it, and what the message says beside `allowed`."""

    text: str
    shown: str
    says: str = "; allowed: "


def faults(option: Option) -> Iterator[Fault]:
    """Values that an option cannot take, by what it says of itself."""
    parts = set(alternatives(option.hint))
    lists = {part for part in parts if get_origin(part) in (tuple, list)}
    if any(map(is_opaque, parts)):
        return
    if type(None) not in parts and str not in parts:
        yield Fault("null", "null")
    if not lists:
        yield Fault("[1, 2]", "a list")
    yield Fault("{a: 1}", "a mapping")
    yield from (Fault(text, text.lower(), " is not finite") for text in (".nan", ".inf", "-.INF", "1e999"))
    if str not in parts:
        yield Fault("nonsense", "'nonsense'")
        yield Fault("2024-01-31", "'2024-01-31'")
        yield Fault("''", "nothing")
    if bool not in parts:
        yield from (Fault(text, text) for text in ("true", "off"))
    if parts & NUMBERS:
        yield from _numbers(option, parts)
    elif not lists:
        yield Fault("12345", "12345")
    choices = [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]
    for word in (*choices, *map(str, option.bounds.get("choices", ()))):
        if len(word) > 3 and word.isalpha():
            yield Fault(word[1::-1] + word[2:], repr(word[1::-1] + word[2:]), word)


def _numbers(option: Option, parts: set[Any]) -> Iterator[Fault]:
    if float not in parts:
        yield from (Fault(text, text) for text in ("8.5", "1e1", "4.0"))
    if str not in parts:
        yield from (Fault(text, repr(text.strip("'"))) for text in ("1:30", "017", "'1 0'", "0o17", "'٣'"))
        yield Fault("9" * 400, "999", "is not finite")
    for bound, (outside, _) in _edges(option, float if float in parts else int).items():
        yield Fault(repr(outside), repr(outside), "; allowed: ") if bound else None


def _edges(option: Option, kind: type) -> dict[str, tuple[Any, Any]]:
    """Bound -> (the nearest number outside, the nearest inside)."""
    found, step = {}, {"low": -1, "above": 1, "high": 1, "below": -1}
    for bound, sign in step.items():
        value = option.bounds.get(bound)
        if value is None:
            continue
        beyond = value + sign if kind is int else math.nextafter(float(value), sign * math.inf)
        inside = bound in ("low", "high")
        found[bound] = (beyond, value) if inside else (kind(value), beyond)
    return found


# ------------------------------------------------------------------------------------------------ places of a request
class Place(NamedTuple):
    """A class that a request may name, and what has options there: `root` holds it."""

    name: str
    root: Option
    cls: type

    def options(self) -> dict[str, Option]:
        bounds = self.root.bounds if self.root.form == "group" else {}
        return {name: refined(option, bounds.get(name)) for name, option in options_of(self.cls).items()}

    def file(self, lines: Mapping[str, str]) -> str:
        """A YAML file that gives options a value each; the first stands on line 4."""
        head = ["top:", f"  class_path: {class_path(self.cls)}", "  init_args:"]
        head = ["top:", "  # a section", "  # of arguments"] if self.root.form == "group" else head
        return "\n".join([*head, *(f"    {name}: {text}" for name, text in lines.items()), ""])


def places() -> Iterator[Place]:
    """Every class that can stand anywhere in a configuration."""
    top, seen = roots(), set()
    todo = [*top.values(), *(slot(kind) for kind in (*kinds().values(), BackboneSpec, LayerSpec))]
    while todo:
        option = todo.pop()
        if option.form == "leaf":
            continue
        for cls in [option.kind] if option.form == "group" else known(option.kind).values():
            if cls not in seen and cls.__module__.startswith(("lit_small_lm.", "lightning.")):
                seen.add(cls)
                place = Place(cls.__name__, option if option.form == "group" else slot(option.kind), cls)
                yield place
                todo.extend(place.options().values())


PLACES = sorted(places(), key=lambda place: place.name)
LEAVES = [
    (place, name, option) for place in PLACES for name, option in place.options().items() if option.form == "leaf"
]


def refusal(place: Place, text: str, folder) -> list[str]:
    """What is said of a file, a line for each fault."""
    file = folder / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        check_request(["-c", str(file)], {"top": place.root})
    return [line.removeprefix(f"{file.parent}/") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_wrong_value_of_every_option_is_refused_where_it_stands(place, tmp_path):
    """One file holds a wrong value of each option, so that all faults of a file are named in one go, too."""
    wrong = {name: list(faults(option)) for name, option in place.options().items() if option.form == "leaf"}
    for turn in range(max(map(len, wrong.values()), default=0)):
        given = {name: values[turn] for name, values in wrong.items() if turn < len(values)}
        said = refusal(place, place.file({name: fault.text for name, fault in given.items()}), tmp_path)
        for line, (name, fault) in enumerate(given.items(), 4):
            found = [text for text in said if text.startswith(f"c.yaml:{line}: top.{name}: ")]
            assert len(found) == 1, (name, fault, said)
            assert fault.says in found[0] and "allowed: " in found[0], (fault, found)
            assert fault.shown.lower() in found[0].lower(), (fault, found)
        assert len(said) == len(given)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_edge_of_every_range_is_taken(place, tmp_path):
    file = tmp_path / "c.yaml"
    for name, option in place.options().items():
        parts = set(alternatives(option.hint))
        for _, inside in _edges(option, float if float in parts else int).values() if option.form == "leaf" else ():
            file.write_text(place.file({name: repr(inside)}))
            try:
                check_request(["-c", str(file)], {"top": place.root})
            except RequestError as error:  # of what has no default, and was not given
                assert f"top.{name}" not in str(error)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_key_misspelt_unknown_or_twice_is_named(place, tmp_path):
    names = list(place.options())
    if not names:
        return
    keys = {name[:1] + name[1:3][::-1] + name[3:]: name for name in names}
    keys = {wrong: name for wrong, name in keys.items() if wrong not in names}
    said = refusal(place, place.file(dict.fromkeys([*keys, "nothing_like_it"], "1")), tmp_path)
    for line, (wrong, name) in enumerate(keys.items(), 4):
        found = next(text for text in said if text.startswith(f"c.yaml:{line}: top.{wrong}: "))
        assert f"'{wrong}' is not an option of {place.cls.__name__}" in found
        assert "did you mean" in found or len(name) < 5 or len(found) > 250, found
    assert sum("'nothing_like_it' is not an option" in text for text in said) == 1
    name = names[0]
    said = refusal(place, place.file({name: "1"}) + f"    {name}: 1\n", tmp_path)
    assert any(f"c.yaml:5: {name}: given twice in one mapping, on lines 4 and 5" in text for text in said)


@pytest.mark.parametrize("place", [p for p in PLACES if p.root.form == "slot"], ids=lambda place: place.name)
def test_every_place_refuses_another_kind_an_unknown_class_and_a_missing_file(place, tmp_path):
    kind = place.root.kind
    other = next(p.cls for p in PLACES if p.root.form == "slot" and p.root.kind is not kind and issubclass(p.cls, Spec)
                 and p.cls not in known(kind).values())  # fmt: skip
    name = place.cls.__name__
    for text, says in {
        other.__name__: f"is {'an' if other.__name__ else 'a'}",
        name[:2] + name[2:4][::-1] + name[4:] + "q": f"is not a known {kind.__name__}",
        "nowhere.yaml": "does not exist",
        "os.system": f"is not a known {kind.__name__}",
        "[]": "allowed: ",
        "3": "'3' is not a known",
    }.items():
        (line,) = refusal(place, f"top: {text}\n", tmp_path)
        assert line.startswith("c.yaml:1: top") and (says in line or text == other.__name__), line


def test_every_number_has_a_range_or_says_that_it_needs_none():
    """A field of a Spec says so with a bare `setting(default)`; sections and our own callbacks have to name one."""
    bare = []
    for place, name, option in LEAVES:
        number = NUMBERS & set(alternatives(option.hint)) and str not in alternatives(option.hint)
        declared = "unit" in option.bounds if issubclass(place.cls, Spec) else option.bounds
        ours = place.cls.__module__.startswith("lit_small_lm.") and place.name not in ("RunFiles", "TokenData")
        if number and not declared and ours:
            bare.append(f"{place.name}.{name}")
    assert bare == []


def test_the_list_is_long():
    assert len(PLACES) > 100 and len(LEAVES) > 500
    assert {"AdamW", "TokenData", "EarlyStopping", "Trainer", "BackboneSpec"} <= {place.name for place in PLACES}


# ----------------------------------------------------------------------------------------------- through the front door
def _dotted(options: Mapping[str, Option], above: str = "--") -> Iterator[tuple[str, Option]]:
    """Options of the sections of a configuration as the command line names them."""
    for name, option in options.items():
        if option.form == "leaf":
            yield f"{above}{name}", option
        elif option.form == "group":
            bounds = {key: refined(inner, option.bounds.get(key)) for key, inner in options_of(option.kind).items()}
            yield from _dotted(bounds, f"{above}{name}.")
        elif isinstance(option.default, Spec):
            yield from _dotted(options_of(type(option.default)), f"{above}{name}.")


TYPED = [(name, option, fault) for name, option in _dotted(roots()) for fault in faults(option)]
CONFIGURED = {"fit": TYPED, "prepare": TYPED, "plan": TYPED}
CHOSEN = {
    command: values if ALL else random.Random(f"{SEED} {command}").sample(values, 12)
    for command, values in CONFIGURED.items()
}


def nested(name: str, text: str) -> str:
    """A YAML file that holds one value."""
    *above, last = name[2:].split(".")
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(above)]
    return "\n".join([*lines, f"{'  ' * len(above)}{last}: {text}", ""])


@pytest.mark.parametrize("form", ["flag", "file"])
@pytest.mark.parametrize("command", CHOSEN)
@pytest.mark.parametrize("seed", [SEED])
def test_wrong_values_through_main(command, seed, form, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, option, fault in CHOSEN[command]:
        text = fault.text.strip("'")
        if form == "flag" and (fault.text in AS_TEXT or str in alternatives(option.hint)):
            continue
        (tmp_path / "c.yaml").write_text(nested(name, fault.text), encoding="utf-8")
        argv = ["-c", "c.yaml"] if form == "file" else ["--model", "AutoregressiveLM", f"{name}={text}"]
        refused([command, *argv], f"{name}: " if form == "flag" else f"{name[2:]}: ", "allowed: ")


AS_TEXT = ("null", "[1, 2]", "true", "off", "12345", "{a: 1}", "''")
"""Values that the command line, which has no quotes, may take for text or for no value."""


# ------------------------------------------------------------------------------------- options that commands declare
def parsers() -> dict[str, argparse.ArgumentParser]:
    return {name: importlib.import_module(module).parser(name) for name, (module, _) in COMMANDS.items()}


PARSERS = parsers()
DECLARED = [
    (command, action) for command, parser in PARSERS.items() for action in parser._actions if action.option_strings
]


def words_of(parser: argparse.ArgumentParser, positional: bool = True) -> list[str]:
    """Something for each word that a command needs; nothing of it is there."""
    needed = [action for action in parser._actions if action.required and (positional or action.option_strings)]
    words = []
    for action in needed:
        value = str(next(iter(action.choices))) if action.choices else "nowhere"
        words += [*action.option_strings[:1], value] if action.nargs != "?" else []
    return words


@pytest.mark.parametrize("command", PARSERS)
def test_every_option_of_a_command_refuses_what_it_cannot_take(command, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = PARSERS[command]
    needed, options = words_of(parser), words_of(parser, positional=False)
    for action in parser._actions:
        for name in action.option_strings:
            if isinstance(action.type, Number):
                for fault in faults(action.type.option):
                    if fault.text not in AS_TEXT:
                        refused([command, *needed, f"{name}={fault.text.strip(chr(39))}"], f"{name}: ", "allowed: ")
            for choice in map(str, action.choices or ()):
                refused(
                    [command, *needed, name, choice + "q"], f"{name}: '{choice}q' is not", f"did you mean {choice}?"
                )
            if action.nargs is None and action.type is not None:
                refused([command, *needed, name], name)
            if name.startswith("--") and len(name) > 5:
                wrong = name[:3] + name[3:5][::-1] + name[5:]
                if wrong != name:
                    refused([command, *needed, f"{wrong}=1"], f"did you mean {name}?")
    for action in (action for action in parser._actions if not action.option_strings and action.nargs is None):
        refused([command, *options], action.metavar or action.dest)


def test_numbers_of_commands_declare_their_range():
    assert [(command, action.dest) for command, action in DECLARED if action.type in NUMBERS] == []
