"""Why a command failed, on stderr; of several processes one says it, once."""

import errno
import re
import sys
import time
import traceback

from lit_small_lm.errors import RequestError, RunError, place_of, request_lines, shown
from lit_small_lm.ranks import process_number

SECONDS_TO_END = 3
"""Of several processes that fail alike, the first one says why, and has this long to end the others."""


class _Told:
    cause = False
    """Whether the cause has been said, by this process or another one."""


told = _Told()


def failure(error: Exception) -> RequestError | RunError:
    """What to say of any error."""
    if isinstance(error, (RequestError, RunError)):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{shown(str(error.filename))}: {error.strerror}" if error.filename else str(error)
        return RequestError(text) if error.errno == errno.ENAMETOOLONG else RunError(text)
    if _is_memory(error):
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error))
        many = f": {asked[1]} were asked for" if asked else ""
        return RunError(
            f"not enough memory{many}; allowed: what fits, such as a shorter text, fewer rows or new tokens"
        )
    return RunError(f"{type(error).__name__} in {place_of(error)}: {shown(str(error))}")


def _is_memory(error: Exception) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def complain(error: Exception, number: int, wait: bool) -> None:
    """Say why the command failed, unless that was said; `wait`: let the first of the processes say it, if it can."""
    if told.cause:
        return
    if number and wait:
        time.sleep(SECONDS_TO_END)  # what it says afterwards is its own trouble
    told.cause = True
    said = failure(error)
    if (
        said is not error
        and not isinstance(error, OSError)
        and not _is_memory(error)
        and number == process_number() == 0
    ):
        traceback.print_exception(error)  # a mistake in this package or a plug-in: its author needs to see where
    of = f"process {number}: " if number else ""
    for line in request_lines(said):
        begins = line.startswith("error: ")
        print(f"error: {of}{line.removeprefix('error: ')}" if begins else f"{of}{line}", file=sys.stderr, flush=True)


def status(error: Exception) -> int:
    """The exit status of a command that failed so."""
    return 2 if isinstance(failure(error), RequestError) else 1
