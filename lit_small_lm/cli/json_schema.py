"""`lit-small-lm schema`: a JSON Schema (2020-12) of configurations, for editors.

Made from the same tree of options that a request is checked with, so it knows every plug-in, range and default.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from lit_small_lm import __version__
from lit_small_lm.cli.describing import NO_RANGE, descriptions, summary
from lit_small_lm.cli.options import Options
from lit_small_lm.cli.schema import REQUIRED, Option, alternatives, options_of, plain_data, refined
from lit_small_lm.discovery import discover
from lit_small_lm.errors import not_known
from lit_small_lm.spec import bounds_text, class_path, known

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = {"type": "string", "pattern": r"(\.ya?ml|\.json)$|/", "description": "a YAML file, relative to this one"}
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
LIMITS = {"low": "minimum", "high": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
Schema = dict[str, Any]


def run(command: str, argv: list[str]) -> int:
    """Print the schema of a training configuration, or with `--kind` that of a file which holds one value of it."""
    args = parser(command).parse_args(argv)
    from lit_small_lm.cli.lit import quiet, roots

    quiet()
    discover(args.plugins)
    print(json.dumps(schema_of(roots(), args.kind), indent=1))
    return 0


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog="lit-small-lm schema", description="Print a JSON Schema of configurations, for editors.")
    parser.add_plugins()
    parser.add_argument(
        "--kind", help="of a file that holds one value, such as BackboneSpec (a family), Shape or TokenData"
    )
    return parser


def schema_of(roots: Mapping[str, Option], kind: str | None = None) -> Schema:
    """The schema of a configuration with these top-level options, or of one value of a kind in it.

    Raises:
        RequestError: nothing in a configuration is of this kind.
    """
    making = _Making()
    version = {"type": ["string", "number"], "description": "the version of this package that wrote the file"}
    files = {"description": "further files, laid under this one", "anyOf": [FILE, {"type": "array", "items": FILE}]}
    properties = {name: making.option(option) for name, option in roots.items()}
    body, title = _closed({"lit_small_lm": version, "config": files, **properties}), f"lit-small-lm {__version__}"
    if kind is not None:
        groups = {option.kind.__name__: option for option in roots.values() if option.form == "group"}
        if kind not in {**groups, **making.kinds}:
            raise not_known("--kind", kind, [*groups, *making.kinds], "kind")
        body = making.group(groups[kind]) if kind in groups else making.value(making.kinds[kind])
        title = f"{kind} of {title}"
    return {"$schema": DIALECT, "title": title, **body, "$defs": dict(sorted(making.found.items()))}


class _Making:
    """Collects the definitions of classes and kinds while options are looked at."""

    def __init__(self) -> None:
        self.found: dict[str, Schema] = {}
        self.kinds: dict[str, type] = {}

    def option(self, option: Option, text: str = "") -> Schema:
        """The schema of one option; `text` is what it is."""
        found = {"leaf": _leaf, "slot": self.slot, "list": self.list, "table": self.table, "group": self.group}
        schema = {"description": text, **found[option.form](option)} if text else found[option.form](option)
        default = plain_data(option.default) if option.form == "leaf" else REQUIRED
        return schema if default is REQUIRED or not _is_json(default) else {**schema, "default": default}

    def slot(self, option: Option) -> Schema:
        """A class by name, by file, or by its options."""
        standing = option.default if isinstance(option.default, type) else type(option.default)
        default = standing if issubclass(standing, option.kind) else None
        return {"anyOf": [self.value(option.kind, default), *_words(option)]}

    def list(self, option: Option) -> Schema:
        """Classes in an order, one class, or a plain word."""
        item = self.value(option.kind)
        return {"anyOf": [{"type": "array", "items": item}, item, *_words(option)]}

    def table(self, option: Option) -> Schema:
        """Named classes."""
        default = option.kind if option.kind in known(option.kind).values() else None
        return {"anyOf": [{"type": "object", "additionalProperties": self.value(option.kind, default)}, FILE]}

    def group(self, option: Option) -> Schema:
        """The arguments of one class."""
        return {"anyOf": [self.arguments(option.kind, option.bounds), FILE]}

    def value(self, kind: type, default: type | None = None) -> Schema:
        """A value of a kind; options may stand alone where a default class is known, or the kind has but one class."""
        self._define(kind)
        choices = known(kind)
        default = next(iter(choices.values())) if default is None and len(choices) == 1 else default
        bare: Schema = {"required": ["class_path"]}
        if default is not None:
            options = self._class(kind, default)
            bare = {"if": {"required": ["init_args"]}, "then": _closed({"init_args": options}), "else": options}
        named = {"$ref": f"#/$defs/{kind.__name__}"}
        mapping = {"if": {"required": ["class_path"]}, "then": named, "else": bare}
        return {"if": {"type": "object"}, "then": mapping, "else": named}

    def _define(self, kind: type) -> None:
        """Define what stands for a class of a kind: its name, a file, or {class_path, init_args}."""
        if kind.__name__ in self.found:
            return
        self.kinds[kind.__name__] = kind
        self.found[kind.__name__] = definition = {}
        choices = known(kind)
        names = [{"const": name, "description": summary(cls)} for name, cls in choices.items()]
        paths = {"enum": [class_path(cls) for cls in choices.values()]}
        cases = [
            {
                "if": {"properties": {"class_path": {"enum": [name, class_path(cls)]}}},
                "then": {"properties": {"init_args": {"anyOf": [self._class(kind, cls), {"type": "null"}]}}},
            }
            for name, cls in choices.items()
        ]
        wrapped = {
            "type": "object",
            "properties": {"class_path": {"anyOf": [*names, paths]}, "init_args": {}},
            "required": ["class_path"],
            "additionalProperties": False,
            "allOf": cases,
        }
        word = {"type": "string", "anyOf": [*names, paths, FILE]}
        definition |= {"description": summary(kind), "if": {"type": "object"}, "then": wrapped, "else": word}

    def _class(self, kind: type, cls: type) -> Schema:
        name = f"{kind.__name__}.{cls.__name__}"
        if name not in self.found:
            self.found[name] = {}
            self.found[name] |= {"description": summary(cls), **self.arguments(cls)}
        return {"$ref": f"#/$defs/{name}"}

    def arguments(self, cls: type, bounds: Mapping[str, Mapping[str, Any]] | None = None) -> Schema:
        """A mapping of the options of a class."""
        texts = descriptions(cls)
        options = {name: refined(option, (bounds or {}).get(name)) for name, option in options_of(cls).items()}
        return _closed({name: self.option(option, texts.get(name, "")) for name, option in options.items()})


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _words(option: Option) -> list[Schema]:
    null = [{"type": "null"}] if option.optional else []
    return [*([{"enum": list(option.words)}] if option.words else []), *null]


def _leaf(option: Option) -> Schema:
    """A value; a range holds for its numbers, a pattern for its text, choices for everything but null."""
    if choices := option.bounds.get("choices"):
        return {"enum": [*choices, *([None] if option.optional else [])]}
    kinds = [_type(hint, option.bounds) for hint in alternatives(option.hint)]
    schema = {} if {} in kinds else kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    unit, allowed = option.bounds.get("unit", ""), bounds_text(option.bounds)
    comment = ", ".join(filter(None, (unit, "" if allowed == NO_RANGE else allowed)))
    return {**schema, "$comment": comment} if comment else schema


def _type(hint: Any, bounds: Mapping[str, Any]) -> Schema:
    """The schema of one type; {} for what the checker does not look into either."""
    args = get_args(hint)
    if get_origin(hint) is Literal:
        return {"enum": list(args)}
    if get_origin(hint) is tuple and args[-1] is not ...:
        return {"type": "array", "prefixItems": [_type(arg, {}) for arg in args], "items": False}
    if get_origin(hint) in (tuple, list):
        return {"type": "array", "items": {"anyOf": [_type(arg, bounds) for arg in alternatives(args[0])]}}
    if hint not in TYPES:
        return {}
    limits = {LIMITS[key]: bounds[key] for key in LIMITS if bounds.get(key) is not None and hint in (int, float)}
    if hint is str and bounds.get("like"):
        limits["pattern"] = "^" + "".join("[0-9]" if letter.isalpha() else letter for letter in bounds["like"]) + "$"
    return {"type": TYPES[hint], **limits}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
