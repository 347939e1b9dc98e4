"""What parts do not go well with and what they need beside them, declared by the parts themselves.

A norm scheme or an init says so in `requires` and `conflicts`; nothing here knows a part by name. What is declared
about a schedule is reported where the schedule is known (see `training.callbacks.wsd`).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lit_small_lm.errors import warn_or_refuse
from lit_small_lm.spec import Spec

OF_SCHEDULES = ("warmup",)
"""What a concern may be about beside classes of Specs."""


@dataclass(frozen=True)
class Concern:
    """Something a part does not go well with, or should not be without, and why."""

    about: str
    """The Spec class it concerns, or "warmup" for a schedule without warm-up."""
    why: str
    level: Literal["warning", "error"] = "warning"


def parts_of(spec: Spec, path: str) -> Iterator[tuple[str, Spec]]:
    """A Spec and every Spec inside it, each with its path."""
    yield path, spec
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for key, part in inner:
            if isinstance(part, Spec):
                yield from parts_of(part, ".".join(filter(None, (path, field.name, key))))


def report_concerns(whole: Spec, path: str, *fields: str) -> None:
    """Warn of what the parts in `fields` of a Spec declare against it.

    Args:
        whole: the Spec whose parts are looked at.
        path: its name in messages.
        fields: the fields whose values declare `requires` and `conflicts`.

    Raises:
        RequestError: a concern of level "error".
    """
    found = {type(part).__name__: place for place, part in parts_of(whole, path)}
    for field in fields:
        part = getattr(whole, field)
        subject = f"{path}.{field} {type(part).__name__}"
        for concern in part.conflicts:
            if concern.about in found:
                text = f"{subject} with {found[concern.about]} {concern.about}: {concern.why}"
                warn_or_refuse(text, concern.level)
        for concern in part.requires:
            if concern.about not in (*found, *OF_SCHEDULES):
                warn_or_refuse(f"{subject} without {concern.about}: {concern.why}", concern.level)
