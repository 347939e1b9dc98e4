"""The words of a command line: which of them are values, and what a value says."""

import re

from yaml import Node

from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.part import Part
from lit_small_lm.cli.schema import alternatives
from lit_small_lm.cli.yaml_tree import BadYAML


def next_value(words: list[str]) -> str | None:
    """Take the next word (the last of the list) if it is a value."""
    return words.pop() if has_value(words) else None


def has_value(words: list[str]) -> bool:
    """Whether the next word is a value: no option, though it may be a negative number."""
    if not words:
        return False
    return not words[-1].startswith("-") or " " in words[-1] or bool(re.match(r"-(\.?\d|\.?inf|nan|$)", words[-1]))


def typed_node(text: str, part: Part) -> Node:
    """The node of a value typed on the command line; braces are looked into unless text is asked for."""
    leaf, kinds = part.option.form == "leaf", set(alternatives(part.option.hint))
    text_only = leaf and str in kinds and kinds <= {str, int, float, bool, type(None)}
    if text_only or not (text[:1] in ("{", "[") or (not leaf and (": " in text or "\n" in text))):
        return yaml_tree.scalar(text)
    try:
        return yaml_tree.compose(text)
    except BadYAML:
        if part.is_opaque():
            return yaml_tree.scalar(text)
        raise
