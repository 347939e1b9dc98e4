"""The two ways a command can fail, and the nearest known name.

`RequestError` becomes exit status 2 (the request is wrong; nothing was changed), `RunError` exit status 1 (a fair
request that failed while it ran). Their text is one line: what was asked for, the value, what is allowed.
"""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request itself is wrong: found before the first optimizer step, nothing changed on disk."""


class RunError(RuntimeError):
    """A fair request failed while it ran; what was saved before stays usable."""


def shown(value: object) -> str:
    """`value` as text that is safe on one terminal line: control characters escaped, at most 120 characters."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= 120 else text[:117] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`'; did you mean X?'` for the closest of `known`, or nothing when none is close."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean {lowered[close[0]]}?" if close else ""


def not_known(where: str, name: str, known: Iterable[str], what: str = "") -> RequestError:
    """The error for a name that is not among `known`."""
    known = sorted(known)
    names = ", ".join(known) if known else "none"
    return RequestError(
        f"{where}: {shown(name)!r} is not a known {what or 'name'}; known: {names}{nearest(name, known)}"
    )
