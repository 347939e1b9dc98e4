"""A folder that a command writes: it appears whole or not at all, and nothing that is there is overwritten."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lit_small_lm.cli.run_options import refuse_file
from lit_small_lm.errors import RequestError, shown


def refuse_used(out: Path) -> None:
    """Raise RequestError if `out` is a file, holds anything, or cannot be written."""
    parent = refuse_file("OUT", out)
    if out.is_symlink():
        raise RequestError(f"OUT: {shown(str(out))} is a link; allowed: a new folder, or an empty one")
    if out.is_dir() and any(out.iterdir()):
        raise RequestError(f"OUT: {shown(str(out))} is not empty; allowed: a new folder, or an empty one")
    if not os.access(parent, os.W_OK):
        raise RequestError(f"OUT: {shown(str(out))}: {shown(str(parent))} cannot be written to")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A hidden folder on the same disk that becomes `out` at the end; after an error it is removed.

    A folder that is there stays the one that it is (where the shell stands, or a mounted disk): it gets the content.
    """
    out = out.absolute()
    place = next(place for place in (out, *out.parents) if place.exists())
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f".{out.name[:40]}."))
    try:
        yield folder
        _settle(folder)
        if place == out:
            for inner in list(folder.iterdir()):
                os.rename(inner, out / inner.name)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Every file on the disk, with the rights that the user's umask gives new ones."""
    mask = os.umask(0)
    os.umask(mask)
    for place in (folder, *folder.rglob("*")):
        place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)
        if place.is_file():
            with open(place, "rb") as stream:
                os.fsync(stream.fileno())
