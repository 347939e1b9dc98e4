"""The two ways a command can fail, and the nearest known name.

`RequestError` becomes exit status 2 (the request is wrong; nothing was changed), `RunError` exit status 1 (a fair
request that failed while it ran). Their text is one line: what was asked for, the value, what is allowed.
"""

import contextlib
import difflib
import itertools
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

WIDTH = 300
"""The longest line of an error message."""
MOST_LINES = 5
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
PLACE = re.compile(r"(?:[^ ]+:\d+: )?[^:]*")
"""How a fault begins: `--option`, or `file.yaml:12: key`."""


class RequestError(ValueError):
    """The request itself is wrong: found before the first optimizer step, nothing changed on disk."""


class RunError(RuntimeError):
    """A fair request failed while it ran; what was saved before stays usable."""


@contextlib.contextmanager
def of_a_record(what: str) -> Iterator[None]:
    """Raise RunError, `what` is damaged, where plain data that was read has another form than what was written."""
    try:
        yield
    except (RequestError, RunError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = shown(" ".join(str(error).split())[:100])
        raise RunError(f"{what} is damaged ({type(error).__name__}: {reason})") from error


def warn_or_refuse(text: str, level: str) -> None:
    """Warn of something that does not go well; at level "error" raise RequestError."""
    if level == "error":
        raise RequestError(text)
    warnings.warn(text, stacklevel=2)  # in our name: what is said in that of Lightning, which calls us, is not shown


def shown(value: object) -> str:
    """`value` as text that is safe on one terminal line: control characters escaped, at most 120 characters."""
    return _cut(_escaped(value if isinstance(value, str) else repr(value)), 120)


def shown_path(path: object) -> str:
    """A path as `shown` shows text, where the end of a long one says most."""
    text = _escaped(str(path))
    return text if len(text) <= 160 else f"...{text[-157:]}"


def path_of(text: str | Path) -> Path:
    """`text` as a path, with the home folder that `~` stands for. Raises RequestError: nobody is called so."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = shown(str(text).split("/")[0][1:])
        raise RequestError(f"{shown(str(text))}: no user is called {user}; allowed: a path") from None


def first_line(error: Exception) -> str:
    """The first line of what a library's error says, or its type; safe as in `shown`."""
    return shown((str(error).splitlines() or [type(error).__name__])[0])


def one(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[:1] in 'AEIOUaeiou' else 'a'} {noun}"


def nearest(name: str, known: Iterable[str], prefix: str = "", suffix: str = "") -> str:
    """`'; did you mean X?'` for the closest of `known`, or nothing when none is close."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{lowered[close[0]]}{suffix}?" if close else ""


def not_known(where: str, name: str, known: Iterable[str], what: str = "") -> RequestError:
    """The error for a name that is not among `known`."""
    known = list(known)
    head, tail = f"{where}: {shown(name)!r} is not a known {what or 'name'}; known: ", nearest(name, known)
    return RequestError(head + listing(name, known, WIDTH - len("error: ") - len(head) - len(tail)) + tail)


def listing(name: str, choices: Iterable[str], room: int) -> str:
    """Names in a line of at most `room` characters: all of them, or those closest to `name` and how many there are."""
    names = sorted(choices)
    text = ", ".join(names) or "none"
    if len(text) <= room:
        return text
    names.sort(key=lambda choice: -difflib.SequenceMatcher(None, name.lower(), choice.lower()).ratio())
    sizes = itertools.accumulate(len(choice) + 2 for choice in names)
    fit = sum(size <= room - len("... (999 in all)") for size in sizes)
    return f"{', '.join(names[:fit])}, ... ({len(names)} in all)" if fit else f"{len(names)} names"


def request_lines(error: Exception) -> list[str]:
    """At most five lines for an error, safe on a terminal, the last one beginning with `error: `.

    Faults that do not get a line of their own are named by their place, as many of them as fit.
    """
    lines = [_escaped(line) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if len(lines) > MOST_LINES:
        lines = _packed(lines)
    lines = [_cut(line, WIDTH) for line in lines]
    return [*lines[:-1], "error: " + _cut(lines[-1], WIDTH - len("error: "))]


def _packed(lines: list[str]) -> list[str]:
    """Five lines of many: whole ones last, as many as leave room for the places of the others before them."""
    for whole in range(MOST_LINES - 1, 0, -1):
        hidden = lines[:-whole]
        packed = [f"... and {len(hidden)} more: "]
        for place in dict.fromkeys(PLACE.match(line)[0] for line in hidden):
            if len(packed[-1]) + len(place) + 2 > WIDTH:
                packed.append("    ")
            packed[-1] += ("" if packed[-1].endswith(" ") else ", ") + _cut(place, 80)
        if len(packed) + whole <= MOST_LINES:
            break
    return [*packed[: MOST_LINES - whole], *lines[-whole:]]


def place_of(error: BaseException) -> str:
    """`file:line` of the code that raised; where a library did, of the line that called it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, "<"))]
    return next((f"{frame.filename}:{frame.lineno}" for frame in [*frames[:1], *ours][::-1]), "unknown")


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
