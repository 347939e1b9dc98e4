"""The two ways a command can fail, and the nearest known name.

`RequestError` becomes exit status 2 (the request is wrong; nothing was changed), `RunError` exit status 1 (a fair
request that failed while it ran). Their text is one line: what was asked for, the value, what is allowed.
"""

import difflib
import warnings
from collections.abc import Iterable

WIDTH = 300
"""The longest line of an error message."""
MOST_LINES = 5


class RequestError(ValueError):
    """The request itself is wrong: found before the first optimizer step, nothing changed on disk."""


class RunError(RuntimeError):
    """A fair request failed while it ran; what was saved before stays usable."""


def warn_or_refuse(text: str, level: str) -> None:
    """Warn of something that does not go well; at level "error" raise RequestError."""
    if level == "error":
        raise RequestError(text)
    warnings.warn(text, stacklevel=3)


def shown(value: object) -> str:
    """`value` as text that is safe on one terminal line: control characters escaped, at most 120 characters."""
    return _cut(_escaped(value if isinstance(value, str) else repr(value)), 120)


def nearest(name: str, known: Iterable[str], prefix: str = "", suffix: str = "") -> str:
    """`'; did you mean X?'` for the closest of `known`, or nothing when none is close."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{lowered[close[0]]}{suffix}?" if close else ""


def not_known(where: str, name: str, known: Iterable[str], what: str = "") -> RequestError:
    """The error for a name that is not among `known`."""
    known = sorted(known)
    names = ", ".join(known) if known else "none"
    return RequestError(
        f"{where}: {shown(name)!r} is not a known {what or 'name'}; known: {names}{nearest(name, known)}"
    )


def request_lines(error: Exception) -> list[str]:
    """At most five lines for an error, safe on a terminal, the last one beginning with `error: `.

    Faults that do not get a line of their own are named by their place.
    """
    lines = [_escaped(line) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if len(lines) > MOST_LINES:
        hidden, lines = lines[: 1 - MOST_LINES], lines[1 - MOST_LINES :]
        places = ", ".join(dict.fromkeys(line.split(": ")[0] for line in hidden))
        lines = [f"... and {len(hidden)} more: {places}", *lines]
    lines = [_cut(line, WIDTH) for line in lines]
    return [*lines[:-1], "error: " + _cut(lines[-1], WIDTH - len("error: "))]


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
