"""What an option is, in words: taken from the docstrings of fields and arguments, as the command line's help is."""

import dataclasses
import functools
import re

import docstring_parser

from lit_small_lm.spec import bounds_text

NO_RANGE = bounds_text({})


@functools.cache
def descriptions(cls: type) -> dict[str, str]:
    """Option -> its docstring on one line, for a Spec or any other class; what a class inherits is described too."""
    found: dict[str, str] = {}
    for owner in cls.__mro__[-2::-1]:
        texts = [vars(owner).get("__doc__"), getattr(vars(owner).get("__init__"), "__doc__", None)]
        params = [param for text in texts if text for param in docstring_parser.parse(text).params]
        for param in [*params, *_attributes(owner)]:
            found[param.arg_name] = _first_sentence(param.description)
    return found


def _first_sentence(text: str | None) -> str:
    """Of several the first one that says something, on one line."""
    words = " ".join((text or "").split())
    return re.split(r"(?<=[a-z0-9)`'\"]\.) (?=[A-Z])", words, maxsplit=1)[0]


@functools.cache
def _attributes(owner: type) -> list[docstring_parser.DocstringParam]:
    if not dataclasses.is_dataclass(owner):
        return []
    try:
        return docstring_parser.parse_from_object(owner).params
    except (OSError, TypeError):  # no source: a class made at run time
        return []


def summary(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return _first_sentence(docstring_parser.parse(cls.__doc__ or "").short_description)
