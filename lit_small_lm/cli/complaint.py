"""Why a command failed, on stderr; of several processes one says it, once."""

import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

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


class _Lossy:
    """A stream that loses what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _lost():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _lost():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # nobody reads: that ends a command
        raise
    except OSError:
        return


@contextlib.contextmanager
def messages_may_be_lost() -> Iterator[None]:
    """Within it standard error on a full disk ends nothing: a run is worth more than what it says."""
    before = sys.stderr
    sys.stderr = _Lossy(before) if before else before
    try:
        yield
    finally:
        sys.stderr = before
        _give_up_what_is_left(before)


def _give_up_what_is_left(stream: TextIO | None) -> None:
    """What cannot be written now would be tried once more at the exit, and change its status."""
    try:
        if stream is not None:  # it may have been closed by who started the command
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
