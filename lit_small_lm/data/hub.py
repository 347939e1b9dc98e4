"""Names on a hub: of data sets, and of models for their tokenizer."""

import re

NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def may_be_on_a_hub(path: str) -> bool:
    """Whether a path that is not here could be a hub's `name` or `owner/name`."""
    return NAME.fullmatch(path) is not None
