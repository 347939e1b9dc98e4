"""What a request may say: the options of classes, found by looking at the classes, and how a value is read for one."""

import collections.abc
import dataclasses
import functools
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from yaml import MappingNode, Node, ScalarNode, SequenceNode

from lit_small_lm.cli.yaml_tree import data, infinite, is_null
from lit_small_lm.errors import nearest, shown
from lit_small_lm.spec import Spec, bounds_text, class_path, known, type_text, within

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""
HUGE = 10**300
"""From here on a whole number is as good as infinite."""
SPELLED = re.compile(
    r"[-+]?(?:nan|inf(?:inity)?|(?:0|[1-9]\d*|(?=\.\d))(?:\.\d*)?(?:e[-+]?\d+)?)", re.ASCII | re.IGNORECASE
)
"""A number in quotes or in braces; what Python takes besides (blanks, other scripts, 017) is not meant as one."""
DECLARED: dict[type, Mapping[str, Mapping[str, Any]]] = {}
"""Ranges of the arguments of classes that are no Specs, such as Lightning's callbacks; see `declare`."""
_NONE = type(None)
_SIMPLE = (int, float, str, bool, _NONE)
Form = Literal["slot", "group", "table", "list", "leaf"]


class Wrong(ValueError):
    """A value that an option cannot take; the text says which, and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its type, default and range. Make one with `group`, `slot` or `plain`."""

    form: Form
    """slot: holds a class of a kind; group: the arguments of one class; table: named slots; list: slots in an order;
    leaf: a value."""
    hint: Any
    default: Any = REQUIRED
    bounds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """As `spec.setting` declares them, "choices", "means": what a number is, in words, and "like": a pattern of text,
    such as "DD:HH", D and H digits; of a group: those of each argument, by its name."""
    kind: Any = None
    """The class of a group, the kind a slot, a table or a list holds."""
    words: tuple[Any, ...] = ()
    """Plain values that may stand in a slot or a list instead of a class, such as the name of a strategy."""
    flag: bool = False
    """Whether it may stand on the command line without a value."""

    @property
    def optional(self) -> bool:
        return _NONE in alternatives(self.hint)


def group(cls: type, bounds: Mapping[str, Mapping[str, Any]] | None = None) -> Option:
    """The arguments of one class, such as the data module; `bounds` adds ranges by argument."""
    return Option("group", cls, None, bounds or {}, cls)


def slot(kind: type, default: Any = REQUIRED) -> Option:
    """A place for a class of `kind`; `default` is an instance, a class or None; without one it has to be given."""
    return Option("slot", kind if default is not None else kind | None, default, {}, kind)


def parts(option: Option, kind: type, words: tuple[Any, ...] = ()) -> Option:
    """`option`, a value that names classes of `kind` which are no Specs, looked into: a slot, or a list of slots."""
    several = any(get_origin(part) in (list, collections.abc.Iterable) for part in alternatives(option.hint))
    return dataclasses.replace(option, form="list" if several else "slot", kind=kind, words=words)


def refined(option: Option, bounds: Mapping[str, Any] | None) -> Option:
    """`option` with what its group says of it: another range, or the kind of the classes that it names."""
    if bounds and "kind" in bounds:
        return parts(option, bounds["kind"], bounds.get("words", ()))
    return option if bounds is None else dataclasses.replace(option, bounds=bounds)


def plain(hint: Any, default: Any = None, bounds: Mapping[str, Any] | None = None, flag: bool = False) -> Option:
    """An option with a value of type `hint`; a `flag` may stand without one."""
    return Option("leaf", hint, default, bounds or {}, flag=flag)


def declare(cls: type, **bounds: Mapping[str, Any]) -> None:
    """Say what range arguments of a class have that is no Spec."""
    DECLARED[cls] = bounds
    options_of.cache_clear()


@functools.cache
def options_of(cls: type) -> dict[str, Option]:
    """Name -> option, for the fields of a dataclass or the constructor arguments of another class."""
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        fields = [field for field in dataclasses.fields(cls) if field.init]
        return {f.name: _option(hints.get(f.name, Any), _field_default(f), f.metadata) for f in fields}
    found: dict[str, Option] = {}
    for owner in cls.__mro__[:-1]:
        if "__init__" not in vars(owner):
            continue
        hints, parameters = _hints(owner.__init__), list(inspect.signature(owner.__init__).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                bounds = DECLARED.get(owner, {}).get(parameter.name, {})
                found.setdefault(parameter.name, _option(hints.get(parameter.name, Any), parameter.default, bounds))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError):
        return {}


def _field_default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _option(hint: Any, default: Any, bounds: Mapping[str, Any]) -> Option:
    for part in alternatives(hint):
        if isinstance(part, type) and get_origin(part) is None and issubclass(part, Spec):
            return Option("slot", hint, default, bounds, part)
        args = get_args(part)
        if get_origin(part) is dict and isinstance(args[1], type) and issubclass(args[1], Spec):
            return Option("table", hint, default, bounds, args[1])
    return Option("leaf", hint, default, bounds)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, flattened; of another hint, the hint."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(part for arg in get_args(hint) for part in alternatives(arg))
    return (hint,)


def is_opaque(hint: Any) -> bool:
    """Whether the hint names something this module does not look into: Any, a callback, a path, a duration."""
    return hint not in _SIMPLE and get_origin(hint) not in (Literal, tuple, list)


def class_named(kind: type, name: str) -> type | None:
    """The known class of `kind` with this short name or dotted path; nothing is imported."""
    choices = known(kind)
    if name in choices:
        return choices[name]
    module, _, last = name.rpartition(".")
    cls = choices.get(last)
    if cls is None or not (name == class_path(cls) or getattr(sys.modules.get(module), last, None) is cls):
        return None
    return cls


def names(option: Option) -> list[str]:
    """What may stand in a slot or a list: short names of classes, and plain words."""
    return [*known(option.kind), *(json.dumps(word).strip('"') for word in option.words)]


def plain_data(value: Any) -> Any:
    """A default as plain data, Specs as `{class_path, init_args}`."""
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain_data(item) for key, item in value.items()}
    return [plain_data(item) for item in value] if isinstance(value, (tuple, list)) else value


# ----------------------------------------------------------------------------------------------------- reading values
def allowed(option: Option) -> str:
    """What an option takes, in words."""
    kinds, bounds = alternatives(option.hint), bounds_text(option.bounds)
    if option.bounds.get("means"):
        return option.bounds["means"] + (" or null" if option.optional else "")
    choices = dict.fromkeys(map(str, option.bounds.get("choices") or _choices(option)))
    words = [f"one of {', '.join(choices)}"] if choices else []
    if not option.bounds.get("choices"):
        words += [_words(k) for k in kinds if get_origin(k) is not Literal and not (k is int and float in kinds)]
    if option.bounds.get("like"):
        words = [f"text like {option.bounds['like']}" if word == "text" else word for word in words]
    text = " or ".join(words)
    return text if bounds == "a finite number" else f"{text}, {bounds}"


def choices_of(option: Option) -> list[str]:
    """The few values that an option takes, as text; none if it takes any."""
    given = option.bounds.get("choices") or [
        *_choices(option),
        *([True, False] if bool in alternatives(option.hint) else []),
    ]
    return list(dict.fromkeys(json.dumps(choice).strip('"') for choice in given))


def _words(hint: Any) -> str:
    if get_origin(hint) in (tuple, list):
        return f"a list [...] of {_words(get_args(hint)[0])}"
    return type_text(hint)


def _choices(option: Option) -> list[Any]:
    return [choice for part in alternatives(option.hint) if get_origin(part) is Literal for choice in get_args(part)]


def quoted(text: str) -> str:
    """Text in quotes, control characters escaped."""
    return f"'{shown(text)}'"


def read(node: Node, option: Option, typed: bool) -> Any:
    """The value of a leaf. `typed`: it stood on the command line, where text has no quotes.

    Raises:
        Wrong: not of the option's type, not finite, or outside its range.
    """
    kinds = alternatives(option.hint)
    if infinite(node):
        raise Wrong(f"{given_text(node)} is not finite; allowed: {allowed(option)}")
    if isinstance(node, ScalarNode):
        value = _read_scalar(node, option, typed)
        _check_range(value, node, option)
        return value
    if isinstance(node, SequenceNode):
        for part in kinds:
            if get_origin(part) in (tuple, list):
                return _read_items(node, part, option, typed)
    if any(is_opaque(part) for part in kinds):
        return data(node)
    raise Wrong(f"{given_text(node)}; allowed: {allowed(option)}")


def _read_items(node: SequenceNode, hint: Any, option: Option, typed: bool) -> list[Any]:
    args = get_args(hint)
    if get_origin(hint) is tuple and args[-1] is not ...:
        if len(args) != len(node.value):
            raise Wrong(f"{len(node.value)} values; allowed: {len(args)}")
        return [read(item, Option("leaf", arg), typed) for item, arg in zip(node.value, args, strict=True)]
    return [read(item, Option("leaf", args[0], bounds=option.bounds), typed) for item in node.value]


def _read_scalar(node: ScalarNode, option: Option, typed: bool) -> Any:
    kinds, value = alternatives(option.hint), data(node)
    for choice in _choices(option):
        if str(choice) == node.value and not isinstance(choice, bool):
            return choice
    if typed and str in kinds and not (set(kinds) & {int, float, bool}):
        return None if is_null(node) and option.optional else node.value
    if typed and {list, tuple} & set(map(get_origin, kinds)) and str not in kinds and isinstance(value, str):
        return [node.value]
    if isinstance(value, str) and str not in kinds and set(kinds) & {int, float}:
        value = _number(value)
    if _accepts(kinds, value):
        return float(value) if float in kinds and int not in kinds and type(value) is int else value
    if typed and str in kinds:
        return node.value
    what = " is not finite" if isinstance(value, float) and not math.isfinite(value) else ""
    close = nearest(node.value, map(str, _choices(option)))
    raise Wrong(f"{given_text(node)}{what}; allowed: {allowed(option)}{close}")


def _accepts(kinds: tuple[Any, ...], value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if any(is_opaque(part) for part in kinds) or type(value) in kinds:
        return True
    return type(value) is int and float in kinds


def _number(text: str) -> int | float | str:
    """Text such as '0.5' or 'nan' as the number it spells."""
    if not SPELLED.fullmatch(text):
        return text
    for make in (int, float):
        try:
            value = make(text)
        except ValueError:
            continue
        if type(value) is int and abs(value) >= HUGE:
            return math.inf if value > 0 else -math.inf
        return value
    return text


def _check_range(value: Any, node: Node, option: Option) -> None:
    if type(value) in (int, float) and not within(value, option.bounds):
        raise Wrong(f"{given_text(node)}; allowed: {allowed(option)}")
    choices, like = option.bounds.get("choices"), option.bounds.get("like")
    if choices and value is not None and value not in choices:
        raise Wrong(f"{given_text(node)}; allowed: {allowed(option)}{nearest(node.value, map(str, choices))}")
    if like and isinstance(value, str) and not re.fullmatch(re.sub("[A-Z]", "[0-9]", like), value):
        raise Wrong(f"{quoted(value)}; allowed: {allowed(option)}")


def given_text(node: Node) -> str:
    """A value as it was written, in one line."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    if not node.value:
        return "nothing"
    return quoted(node.value) if isinstance(data(node), str) else shown(node.value)
