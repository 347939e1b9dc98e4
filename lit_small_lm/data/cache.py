"""The cache folder: where it is, files that appear whole or not at all, and digests that are computed once.

Reading a corpus only to see that it has not changed takes longer than most runs. The SHA-256 of a file is therefore
remembered under its path, size and time of change, as build tools do.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lit_small_lm.digests import sha256_of
from lit_small_lm.errors import RunError, shown

Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


def default_cache() -> Path:
    """Where stores are kept: $LIT_SMALL_LM_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LIT_SMALL_LM_CACHE") or Path(base) / "lit_small_lm")


def key_of(*parts: object) -> str:
    """A name for what is kept under its content: the beginning of the SHA-256 of `parts`, a line each."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]


def replace_file(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        new.write(text)
    os.replace(new.name, file)


def stamp(file: Path | int) -> Stamp:
    """What changes when a file does; it may be given open."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def check_unchanged(file: Path, before: Stamp) -> None:
    """Raises RunError if a file is not what it was."""
    try:
        now = stamp(file)
    except OSError as error:
        raise RunError(f"{shown(str(file))}: {error.strerror}; it was there when the run began") from None
    if now != before:
        sizes = f"{before[0]:,} bytes before, {now[0]:,} now"
        raise RunError(f"{shown(str(file))}: changed while it was being read ({sizes}); start again")


def digests_of(files: Sequence[Path]) -> list[str]:
    """SHA-256 of each file; computed only where path, size or time of change is new."""
    paths = [str(file.absolute()) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    place = default_cache() / "digests" / f"{key_of(root)}.json"
    known = _known(place)
    found = {}
    for path, file in zip(paths, files, strict=True):
        now = list(stamp(file))
        before = known.get(path)
        found[path] = before if before and before[:2] == now else [*now, sha256_of(file)]
    if any(known.get(path) != entry for path, entry in found.items()):
        _remember(place, {**known, **found})
    return [found[path][2] for path in paths]


def _known(place: Path) -> dict[str, list]:
    try:
        return json.loads(place.read_text())
    except (OSError, ValueError):
        return {}


def _remember(place: Path, entries: dict[str, list]) -> None:
    try:
        replace_file(place, json.dumps(entries))
    except OSError:  # a cache that cannot be written costs time, nothing else
        return
