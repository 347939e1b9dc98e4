"""One place of a request, and what it holds: a value, or a class with the options given for it."""

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any

from yaml import Node

from lit_small_lm.cli.schema import (
    REQUIRED,
    Option,
    Wrong,
    allowed,
    alternatives,
    is_opaque,
    names,
    options_of,
    plain_data,
    read,
    refined,
)
from lit_small_lm.spec import Spec, class_path, known

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Given:
    """A value or class that was asked for."""

    value: Any
    node: Node
    where: str
    """Where it was written, as an error names it."""
    sources: Path = ()
    """The files and options it was read through, outermost first."""
    typed: bool = False
    """Whether it stood on the command line."""


class Part:
    """A place of the request; its parts are made when they are asked for."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.restart()

    @classmethod
    def root(cls, roots: Mapping[str, Option]) -> "Part":
        """The whole request."""
        part = cls(Option("group", dict, None))
        part._roots = dict(roots)
        return part

    def restart(self) -> None:
        """Forget everything that was given."""
        default = self.option.default
        self._roots: dict[str, Option] = {}
        self.parts: dict[str, Part] = {}
        self.given: Given | None = None
        self.broken = False
        """Whether an unknown class was asked for: its options cannot be checked."""
        self.file = ""
        """The file this place was filled from."""
        self.cls: type | None = self.option.kind if self.option.form == "group" else None
        self.start: Any = None
        if self.option.form == "slot" and default not in (None, REQUIRED, *self.option.words):
            self.cls = default if isinstance(default, type) else type(default)
            self.start = None if isinstance(default, type) else default
        if self.option.form == "table":
            for name, item in ({} if default is REQUIRED else default or {}).items():
                self.parts[name] = Part(dataclasses.replace(self._item(), default=item))

    def options(self) -> dict[str, Option]:
        """Name -> option of the class held here."""
        if self._roots:
            return self._roots
        if self.cls is None or self.option.form == "table":
            return {}
        found = options_of(self.cls)
        bounds = self.option.bounds if self.option.form == "group" else {}
        return {name: self._refined(name, option, bounds) for name, option in found.items()}

    def _refined(self, name: str, option: Option, bounds: Mapping[str, Any]) -> Option:
        option = refined(option, bounds.get(name))
        return option if self.start is None else dataclasses.replace(option, default=getattr(self.start, name))

    def _item(self) -> Option:
        kind = self.option.kind
        default = kind if self.option.form == "table" and kind in known(kind).values() else REQUIRED
        return Option("slot", kind, default, {}, kind)

    def append(self) -> "Part":
        """A further place at the end of a list."""
        self.given = None
        self.parts[str(len(self.parts))] = part = Part(self._item())
        return part

    def last(self) -> "Part":
        """The place at the end of a list."""
        return list(self.parts.values())[-1] if self.parts else self.append()

    def part(self, name: str) -> "Part":
        """A place below; it has to be among the options, or this a table."""
        if name not in self.parts:
            self.parts[name] = Part(self._item() if self.option.form == "table" else self.options()[name])
        return self.parts[name]

    def is_opaque(self) -> bool:
        """Whether the parser, not this check, looks into the value."""
        return self.option.form == "leaf" and any(map(is_opaque, alternatives(self.option.hint)))

    def allowed(self) -> str:
        """What may stand here, in words."""
        if self.option.form == "leaf":
            return allowed(self.option)
        if self.option.form in ("slot", "list"):
            return f"{', '.join(names(self.option))} or a YAML file"
        return "a YAML file or a mapping"

    # ---------------------------------------------------------------------------------------------------- changing
    def choose(self, cls: type | None, given: Given) -> None:
        """Hold another class; options given before are kept where the new class has them and they fit."""
        old, same = self.parts, cls is self.cls
        self.given, self.broken = given, False
        if same:
            return
        self.cls, self.start, self.parts = cls, None, {}
        self._carry_parts(old)

    def _carry(self, old: "Part") -> None:
        if self.option.form != old.option.form:
            return
        if self.option.form == "leaf" and old.given is not None:
            try:
                self.given = dataclasses.replace(old.given, value=read(old.given.node, self.option, old.given.typed))
            except Wrong:
                return
        if self.option.form == "list":
            self.given, self.parts = old.given, old.parts
            return
        if self.option.form == "slot" and old.given is not None and self._may_be(old.cls):
            self.choose(old.cls, old.given)
        self._carry_parts(old.parts)

    def _carry_parts(self, old: Mapping[str, "Part"]) -> None:
        for name, part in old.items():
            if name in self.options() or self.option.form == "table":
                self.part(name)._carry(part)

    def _may_be(self, cls: type | None) -> bool:
        return self.option.optional if cls is None else issubclass(cls, self.option.kind)

    def forget_defaults(self) -> None:
        """Treat options of classes that were given their default value as not given."""
        for part in self.parts.values():
            leaf_of_spec = part.option.form == "leaf" and self.option.form == "slot"
            if leaf_of_spec and part.given and part.given.value == plain_data(part.option.default):
                part.given = None
            part.forget_defaults()

    # ----------------------------------------------------------------------------------------------------- outcome
    def givens(self, path: Path) -> Iterator[tuple[Path, Given]]:
        """Everything that was asked for here and below."""
        if self.given is not None:
            yield path, self.given
        for name, part in self.parts.items():
            yield from part.givens((*path, name))

    def lacking(self, path: Path) -> Iterator[tuple[Path, "Part"]]:
        """Places without a default that were given nothing."""
        if self.option.form in ("table", "list"):
            for name, part in self.parts.items():
                yield from part.lacking((*path, name) if self.option.form == "table" else path)
        for name, option in self.options().items():
            if option.form == "group" or option.default is REQUIRED or name in self.parts:
                part = self.part(name)
                if option.default is REQUIRED and part.cls is None and not part.given:
                    yield (*path, name), part
                yield from part.lacking((*path, name))

    def tree(self) -> Any:
        """Plain data: a chosen class with all of its options, a group with those that were given."""
        if self.option.form == "leaf":
            return self.given.value if self.given else plain_data(self.option.default)
        if self.option.form in ("slot", "list") and self.given and self.cls is None:
            return self.given.value
        if self.option.form == "slot" and self.cls is None:
            return None
        if self.option.form == "list":
            return [part.tree() for part in self.parts.values()]
        if self.option.form == "slot":
            return {"class_path": class_path(self.cls), "init_args": self._arguments()}
        everything = self.option.form == "table"
        return {name: part.tree() for name, part in self.parts.items() if everything or any(part.givens(()))}

    def _arguments(self) -> dict[str, Any]:
        """Every option of a Spec; of another class those given and every Spec below."""
        whole, found = issubclass(self.cls, Spec), {}
        for name, option in self.options().items():
            given = name in self.parts and any(self.parts[name].givens(()))
            if not given and isinstance(option.default, enum.Enum):  # a default that the parser could not write down
                found[name] = option.default.value
            elif given or option.form != "leaf" or (whole and option.default is not REQUIRED):
                found[name] = self.part(name).tree()
        return found
