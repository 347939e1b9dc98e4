"""Where torch.compile keeps the machine code that it will load again: it has to be a folder of the user's own.

By default that is a folder below /tmp named after the user, which anybody on the machine may make first
(TORCHINDUCTOR_CACHE_DIR names another). What lies in it is run without being looked at.
"""

import getpass
import os
import stat
import tempfile
from pathlib import Path

from lit_small_lm.errors import RunError, shown

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The folder that torch takes."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    user = "".join(c if c.isalnum() else "_" for c in getpass.getuser())
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def refuse_foreign_cache() -> None:
    """Make the folder, for this user alone, if it is not there.

    Raises:
        RunError: it is somebody else's, or others may write to it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise RunError(f"compile: {shown(str(folder))}: {error.strerror}; {VARIABLE} names another folder") from None
    fault = "belongs to another user" if found.st_uid != os.getuid() else "can be written to by others"
    if found.st_uid != os.getuid() or found.st_mode & OTHERS:
        text = f"compile: {shown(str(folder))}: {fault}, and its code would be run; allowed: a folder of your own"
        raise RunError(f"{text}, named by {VARIABLE}")
