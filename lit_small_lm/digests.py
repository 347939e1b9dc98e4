"""SHA-256 digests of files in a list beside them, in the form that `sha256sum -c` reads.

They find damage: a byte that a disk or a copy changed. Against somebody who can change the file they help only where
the list came another way, since whoever changes the one can change the other.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lit_small_lm.errors import RequestError, RunError, shown

SUMS = "SHA256SUMS"
CHUNK = 1 << 20
LARGEST = 1 << 20
"""Bytes of a list; one of ten thousand files has fewer."""
LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def sums_text(digests: Mapping[str, str]) -> str:
    """The list: a line of digest and name for each file."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """List files of a folder, which then belong together."""
    (folder / SUMS).write_text(sums_text({name: sha256_of(folder / name) for name in names}))


def read_sums(file: Path) -> dict[str, str]:
    """Name -> digest, as a list says.

    Raises:
        RequestError: it is too large to be one.
        RunError: a line of it is none of a list.
    """
    size = file.stat().st_size
    if size > LARGEST:
        raise RequestError(f"{shown(str(file))}: {size:,} bytes; allowed: at most {LARGEST:,}")
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise RunError(f"{shown(str(file))}:{number}: no digest and name; the list is damaged")
        found[match[2]] = match[1]
    return found


def refuse_changed(folder: Path, names: Iterable[str], digests: Mapping[str, str]) -> None:
    """Raise RunError for the first file of a folder that is missing, or is not as its list says."""
    for name in names:
        file = folder / name
        if name not in digests:
            raise RunError(f"{shown(str(file))} is not in {SUMS}; it did not come with the others")
        if not file.is_file():
            raise RunError(f"{shown(str(file))} is missing; {SUMS} names it")
        found = sha256_of(file)
        if found != digests[name]:
            raise RunError(
                f"{shown(str(file))} was changed or is damaged: its SHA-256 is {found[:16]}..., {SUMS} says "
                f"{digests[name][:16]}..."
            )
