"""Files that are there whole or not at all, whatever ends the process, and the digest that says what they held.

A file is written beside its place, synced, renamed over it, and its folder synced (the pattern of "All File Systems Are
Not Created Equal", OSDI 2014). The SHA-256 is taken of the bytes as they pass, so that nothing is read again.

Why a kill between any two system calls of `save` harms nothing: until the manifest is renamed, everything is as it was.
From then on the manifest lists the new content beside the old, so that the file that is there, still the old one or
none, is good. The rename of the file changes one good state for another; after it only the old line is taken back. A
power cut is no different, since each rename is synced before the next. Renaming replaces a link, never its target.
"""

import contextlib
import errno
import hashlib
import os
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lit_small_lm.digests import CHUNK, sha256_of, sums_text
from lit_small_lm.errors import RunError, shown_path

SUFFIX = ".sha256"
LARGEST = 1 << 16
"""Bytes of a manifest; one that is longer is none."""


class DamagedError(RunError):
    """What was read is not what was written."""


class NewFile:
    """What a new file is written through: it counts and digests the bytes.

    The first error ends the writing, but not what writes, so that the count says how many bytes are needed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.error = path, 0, None
        self._digest, self._number = hashlib.sha256(), None
        with self._noting():
            path.unlink(missing_ok=True)  # of a save that was killed
            self._number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # never through a link

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def write(self, data: Any) -> int:
        """Write bytes, all of them."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        if self.error is None:
            with self._noting():
                rest = view
                while rest:
                    rest = rest[os.write(self._number, rest) :]
            self._digest.update(view)
        return len(view)

    def flush(self) -> None:
        """Nothing: bytes are written at once."""

    def close(self) -> str:
        """Sync and close; returns the SHA-256. Raises the first OSError."""
        if self._number is not None:
            number, self._number = self._number, None
            with self._noting():
                os.fsync(number)
            with self._noting():
                os.close(number)
        if self.error is not None:
            raise self.error
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Remove the file, unless it has another name by now."""
        with contextlib.suppress(OSError):
            if self._number is not None:
                os.close(self._number)
            self.path.unlink()


def manifest_of(path: Path) -> Path:
    """Where the digest of a file stands, in the form that `sha256sum -c` reads."""
    return path.with_name(path.name + SUFFIX)


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises RunError as `save` does."""
    with _staged(path) as stream:
        stream.write(data)
        stream.close()
        os.replace(stream.path, path)
        sync(path.parent)


def save(path: Path, fill: Callable[[NewFile], None]) -> None:
    """Write a file whole or not at all, and its manifest beside it.

    Args:
        path: of the file; its folder is made if it is not there.
        fill: writes the content.

    Raises:
        RunError: the disk is full, or refuses; what was there before is as it was, and nothing half-written remains.
    """
    with _staged(path) as stream:
        fill(stream)
        digest, before = stream.close(), _digests_of(path)
        _list(path, dict.fromkeys([digest, *before]))
        os.replace(stream.path, path)
        sync(path.parent)
        if before:
            _list(path, [digest])


def _list(path: Path, digests: Iterable[str]) -> None:
    replace(manifest_of(path), "".join(sums_text({path.name: digest}) for digest in digests).encode())


def _digests_of(path: Path) -> list[str]:
    """What a file that is going to be replaced may be, taken now if it never had a manifest; nothing where none is."""
    if not path.is_file():
        return []
    manifest = manifest_of(path)
    with contextlib.suppress(DamagedError):
        return _listed(manifest, path.name) if os.path.lexists(manifest) else [sha256_of(path)]
    return []


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[NewFile]:
    """A stream into a new file beside `path`, which is gone afterwards unless it was renamed."""
    stream = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = NewFile(path.with_name(f".{path.name}.new"))
        yield stream
    except OSError as error:
        raise refusal(path, error, stream.size if stream else 0) from error
    finally:
        if stream is not None:
            stream.discard()


def sync(folder: Path) -> None:
    """Make the names in a folder last; some network disks have nothing to offer for that."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def refusal(path: Path, error: OSError, needed: int) -> RunError:
    """What there is to say of a file that cannot be written: the reason, bytes needed and bytes free."""
    place = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    text = f"{shown_path(path)}: {error.strerror or error}"
    with contextlib.suppress(OSError):
        text += (f"; {needed:,} bytes needed" if needed else "") + f"; {shutil.disk_usage(place).free:,} bytes free"
    if error.errno == errno.EFBIG:
        text += f", {resource.getrlimit(resource.RLIMIT_FSIZE)[0]:,} allowed in a file (ulimit -f)"
    return RunError(f"{text}; what was saved before is as it was")


def verify(path: Path, file: BinaryIO) -> Literal["good", "no manifest"]:
    """Hold the content of an open file against the manifest of its path, which is that of a link's target.

    Raises:
        DamagedError: file or manifest is not what was written.
    """
    path = path.resolve()
    manifest = manifest_of(path)
    if not os.path.lexists(manifest):
        return "no manifest"
    known = _listed(manifest, path.name)
    digest = hashlib.sha256()
    while data := file.read(CHUNK):
        digest.update(data)
    file.seek(0)
    if digest.hexdigest() not in known:
        raise DamagedError(f"its SHA-256 is not that of {manifest.name}")
    return "good"


def _listed(manifest: Path, name: str) -> list[str]:
    """The digests that a file of this name may have."""
    with contextlib.suppress(OSError):
        text = b""
        if manifest.is_file():  # a pipe might never end
            with open(manifest, "rb") as file:
                text = file.read(LARGEST)
        found = [line[:64].decode("latin-1") for line in text.split(b"\n")[:-1]]
        spelled = "".join(sums_text({name: digest}) for digest in found).encode()
        if found and spelled == text and all(set(digest) <= set("0123456789abcdef") for digest in found):
            return found
    raise DamagedError(f"its {manifest.name} is damaged")


def sweep(folder: Path) -> None:
    """Remove what killed saves left in a folder: unfinished files, and manifests of files that are not there."""
    for file in folder.glob(".*.new"):
        file.unlink(missing_ok=True)
    for manifest in folder.glob(f"*.ckpt{SUFFIX}"):
        if not os.path.lexists(manifest.with_name(manifest.name.removesuffix(SUFFIX))):
            manifest.unlink(missing_ok=True)
