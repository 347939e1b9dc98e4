"""Spec: the frozen value behind everything a config can name.

A Spec's dataclass fields are at once its config schema, command-line help, YAML vocabulary and the record kept in
checkpoints. One level is abstract (the kind), one level is final (the choices), and the class hierarchy is the
registry: a class is known as soon as its module has been imported (see `discovery`).
"""

import abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from lit_small_lm.errors import RequestError, not_known, one, shown

S = TypeVar("S", bound="Spec")
PLUGIN_API = 1
"""The version of the contracts in `plugin`. It grows when a plug-in that kept them would no longer work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec(abc.ABC):
    """A frozen, printable, comparable value that names and configures one part."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"class_path": dotted path, "init_args": {field: value}}`."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"class_path": class_path(type(self)), "init_args": fields}

    @classmethod
    def from_dict(cls: type[S], record: Mapping[str, Any]) -> S:
        """The Spec that `to_dict` described; `cls` is the kind it must be of.

        Raises:
            RequestError: unknown class (nothing is imported because a record says so), unknown field, or a value
                outside its declared range.
        """
        spec = _build(cls, record)
        problems = list(check_settings(spec))
        if problems:
            raise RequestError("; ".join(problems))
        return spec


def setting(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a range: `low`/`high` inclusive, `above`/`below` exclusive, and a unit for the help."""
    bounds = {"low": low, "high": high, "above": above, "below": below, "unit": unit}
    return dataclasses.field(default=default, metadata=bounds)


def bounds_text(bounds: Mapping[str, Any]) -> str:
    """`'at least 1, below 2'`: the range declared by `setting`, in words."""
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    parts = [f"{word} {bounds[key]}" for key, word in words.items() if bounds.get(key) is not None]
    return ", ".join(parts) or "a finite number"


def within(value: float, bounds: Mapping[str, Any]) -> bool:
    """Whether a number is finite and inside the range declared by `setting`."""
    low, high, above, below = (bounds.get(k) for k in ("low", "high", "above", "below"))
    return (
        abs(value) <= sys.float_info.max  # unlike math.isfinite it takes whole numbers of any size
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def check_settings(spec: Spec, where: str = "") -> Iterator[str]:
    """One line for every field of `spec`, nested ones included, whose type or range is wrong."""
    hints = hints_of(type(spec))
    for field in dataclasses.fields(spec):
        value, path = getattr(spec, field.name), f"{where}.{field.name}" if where else field.name
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not matches(value, hints[field.name]):
            yield f"{path}: {shown(value)} is not {type_text(hints[field.name])}"
        elif number and not within(value, field.metadata):
            yield f"{path}: {shown(value)}; allowed: {bounds_text(field.metadata)}"
        members = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, member in members:
            if isinstance(member, Spec):
                yield from check_settings(member, f"{path}.{key}" if key else path)


def matches(value: Any, hint: Any) -> bool:
    """Whether `value` is of the hinted type; true and 1 are not taken for each other."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(matches(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(matches(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(matches(item, args[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def type_text(hint: Any) -> str:
    """A type hint in the words of an error message."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_text(arg) for arg in get_args(hint))
    if hint is type(None):
        return "null"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint) or (one(hint.__name__) if isinstance(hint, type) else str(hint))


def class_path(cls: type) -> str:
    """The one dotted name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def hints_of(cls: type) -> dict[str, Any]:
    """Field name -> type of a Spec class."""
    return typing.get_type_hints(cls)


def final_classes(kind: type[S]) -> Iterator[type[S]]:
    """Every public class of a kind, of any depth, that has been imported and is not abstract."""
    if not inspect.isabstract(kind) and not kind.__name__.startswith("_"):
        yield kind
    for cls in kind.__subclasses__():
        yield from final_classes(cls)


def known(kind: type[S]) -> dict[str, type[S]]:
    """Short name -> class, for every final class of `kind` that has been imported.

    Raises:
        RequestError: two classes share a name; both files are named.
    """
    found: dict[str, type[S]] = {}
    for cls in final_classes(kind):
        other = found.setdefault(cls.__name__, cls)
        if other is not cls:
            raise RequestError(
                f"two {kind.__name__} classes are named {cls.__name__}: {origin(other)} and {origin(cls)}"
            )
    return dict(sorted(found.items()))


def find(kind: type[S], name: str, where: str = "") -> type[S]:
    """The class of `kind` with this short name or dotted path; never imports anything.

    Raises:
        RequestError: no such class is known; the message lists the known ones and the nearest.
    """
    choices = known(kind)
    by_path = {class_path(cls): cls for cls in choices.values()}
    if name in choices:
        return choices[name]
    if name in by_path:
        return by_path[name]
    raise not_known(where or kind.__name__, name, choices, kind.__name__)


def origin(cls: type) -> str:
    """The file that defines a class."""
    try:
        return inspect.getfile(cls)
    except (TypeError, OSError):
        return cls.__module__


def kinds() -> dict[str, type[Spec]]:
    """Every abstract kind by name, `Shape`, `Norm`, `NormScheme` and so on."""
    return dict(sorted((cls.__name__, cls) for cls in Spec.__subclasses__() if inspect.isabstract(cls)))


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _build(kind: type[S], record: Mapping[str, Any]) -> S:
    name = record.get("class_path") if isinstance(record, Mapping) else None
    if not isinstance(name, str) or not isinstance(record.get("init_args", {}), Mapping):
        raise RequestError(f"{one(kind.__name__)}: {shown(record)}; allowed: a class_path, and init_args by name")
    cls = find(kind, name)
    hints, given = hints_of(cls), record.get("init_args", {})
    for name in given:
        if name not in {f.name for f in dataclasses.fields(cls)}:
            raise not_known(cls.__name__, name, hints, "option")
    lacking = [f.name for f in dataclasses.fields(cls) if f.name not in given and _is_needed(f)]
    if lacking:
        raise RequestError(f"{cls.__name__}.{lacking[0]}: not given; allowed: {type_text(hints[lacking[0]])}")
    return cls(**{name: _value(value, hints[name]) for name, value in given.items()})


def _is_needed(field: dataclasses.Field) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _class_at(path: str) -> type:
    """The known class at a dotted path; Spec, whose search then fails with all names, if there is none."""
    return next((cls for cls in final_classes(Spec) if class_path(cls) == path), Spec)


def _value(value: Any, hint: Any) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return _build(_class_at(value["class_path"]), value)
    if isinstance(value, Mapping):
        return {key: _value(item, None) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_value(item, None) for item in value)
    return value
