"""A run directory belongs to one training at a time.

The lock is the operating system's (flock), on a file that says whose it is. It goes with the process, however that
ends, so that no lock of a dead one is left, whatever its number is given to next. The trick is in who inherits it:
loader workers are forked with the open file, and outlive a killed parent by seconds, so they close it at once.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import warnings
from pathlib import Path

from lit_small_lm.errors import RequestError, shown, shown_path

NAME = ".lock"
_held: dict[Path, int] = {}
"""Of this process: directory -> open file."""


def hold(folder: Path) -> None:
    """Take a directory that exists, until `let_go`; one that this process holds already stays its own.

    Raises:
        RequestError: another process holds it.
        OSError: the lock cannot be written.
    """
    file = folder.resolve() / NAME
    while file.parent not in _held:
        number = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _said(number)
            os.close(number)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RequestError(
                    f"--run_dir: {shown_path(folder)} is in use by {holder}; allowed: another directory, or this one "
                    "once that has ended"
                ) from None
            warnings.warn(f"--run_dir: {shown_path(folder)} cannot be locked ({error.strerror})", stacklevel=2)
            return
        if _is(file, number):
            _held[file.parent] = number
        else:  # its last holder removed it between the two calls
            os.close(number)
    _write(_held[file.parent])


def let_go() -> None:
    """Give back what this process holds; the lock's file goes with it."""
    while _held:
        folder, number = _held.popitem()
        with contextlib.suppress(OSError):
            (folder / NAME).unlink()
        os.close(number)


def _write(number: int) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
    with contextlib.suppress(OSError):  # on a full disk it holds without a word
        os.ftruncate(number, 0)
        os.pwrite(number, f"{text}\n".encode(), 0)


def _said(number: int) -> str:
    """Whose lock it is, as its file says."""
    try:
        found = json.loads(os.pread(number, 1000, 0))
        return f"process {found['pid']:d} on {shown(found['host'])} since {shown(found['since'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _is(file: Path, number: int) -> bool:
    """Whether an open file is still the one of that name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(file.stat(), os.fstat(number))
    return False


def _forget() -> None:
    """In a forked process: what its parent holds is not its own."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forget)
