"""Shards: a stream of tokens in files of a stated size, each written once and described by a record written last.

Tokens are read with positioned reads, not through a memory map: they are as fast, and a file that was cut short
meanwhile is an error that names it instead of a bus error. A file that changes while a run reads it is held against
its digest again before its next token is used.
"""

import bisect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_small_lm.data.cache import Stamp, digests_of, replace_file, sha256_of, stamp
from lit_small_lm.data.duplicates import SKETCH
from lit_small_lm.data.encoding import Encoded, ReadTo
from lit_small_lm.data.given import NOTHING_GIVEN
from lit_small_lm.data.splits import SPLITS
from lit_small_lm.errors import RunError, shown
from lit_small_lm.plugin import Split

ARRAYS = ("documents", "given", "sketches")
AGAIN = "delete the folder and prepare again"


class TokenFile(NamedTuple):
    """A run of tokens in a file."""

    path: Path
    length: int
    dtype: str
    recorded: Mapping[str, Any] | None = None
    """Size, time of change and digest when it was written, if they are known."""

    def check(self) -> None:
        """Raises RunError if it is missing, or is not what was written."""
        if self.recorded is not None:
            _check_file(self.path, self.recorded, f"token store {shown(str(self.path.parent))}", every=False)


class SplitTokens:
    """One split of one component: a stream of documents, each begun by the end token, and one last end token.

    Args:
        pieces: the stream in order, as arrays of ids or files of them; the last end token included.
        starts: (documents,) where each document begins.
        given: (R, 2) runs of the stream that are given.
    """

    def __init__(
        self, pieces: Sequence[np.ndarray | TokenFile], starts: np.ndarray, given: np.ndarray = NOTHING_GIVEN
    ) -> None:
        self.pieces = [piece for piece in pieces if _length(piece)]
        self.starts, self.given = np.asarray(starts, dtype=np.int64), given
        self._ends = np.cumsum([_length(piece) for piece in self.pieces]).tolist()
        self._open: dict[int, tuple[int, Stamp]] = {}

    @property
    def length(self) -> int:
        """Tokens of the stream, the last end included."""
        return self._ends[-1]

    @property
    def documents(self) -> int:
        return len(self.starts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids in [start, stop), a copy. Raises RunError if a file is not what was written."""
        index = bisect.bisect_right(self._ends, start)
        found = []
        while start < stop:
            end = self._ends[index]
            offset = end - _length(self.pieces[index])
            found.append(self._slice(index, start - offset, min(stop, end) - offset))
            start, index = end, index + 1
        return found[0] if len(found) == 1 else np.concatenate(found) if found else np.empty(0, np.uint16)

    def _slice(self, index: int, start: int, stop: int) -> np.ndarray:
        piece = self.pieces[index]
        if isinstance(piece, np.ndarray):
            return piece[start:stop].copy()
        dtype = np.dtype(piece.dtype)
        found = np.empty(stop - start, dtype)
        if os.preadv(self._handle(index), [found], start * dtype.itemsize) != found.nbytes:
            raise RunError(f"token store: {piece.path} has become shorter than its {piece.length:,} tokens")
        return found

    def _handle(self, index: int) -> int:
        """A file, open for reading; checked when it is opened, and again where it has changed since."""
        if index in self._open:
            handle, before = self._open[index]
            if stamp(handle) == before:
                return handle
            os.close(self._open.pop(index)[0])
        self.pieces[index].check()
        handle = os.open(self.pieces[index].path, os.O_RDONLY)
        self._open[index] = handle, stamp(handle)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # another process opens files of its own

    def __del__(self) -> None:
        for handle, _ in self._open.values():
            os.close(handle)


def _length(piece: np.ndarray | TokenFile) -> int:
    return len(piece) if isinstance(piece, np.ndarray) else piece.length


class ShardWriter:
    """Writes one shard: for each split its tokens, where its documents begin, what is given, and their sketches.

    Args:
        folder: of the store.
        number: of the shard, from 0.
        dtype: of the tokens.
    """

    def __init__(self, folder: Path, number: int, dtype: str) -> None:
        self.folder, self.number, self.dtype = folder, number, dtype
        self.splits = {split: _SplitWriter(folder / name_of(number, split, "tokens")) for split in SPLITS}
        self.empty = self.largest = 0

    @property
    def length(self) -> int:
        """Tokens so far."""
        return sum(part.tokens for part in self.splits.values())

    def add(self, found: Sequence[Encoded], empty: int) -> None:
        """Append the tokens of a batch, in which so many documents were empty."""
        self.empty += empty
        for part in found:
            self.splits[part.split].add(part)
            self.largest = max(self.largest, int(part.tokens.max(initial=0)))

    def close(self, position: ReadTo, last: bool) -> dict[str, Any]:
        """Finish the shard. Its record, which says where reading goes on, is written last, and returned."""
        files: list[Path] = []
        for split, part in self.splits.items():
            part.close()
            documents, given, sketches = (self.folder / name_of(self.number, split, f"{what}.npy") for what in ARRAYS)
            np.save(documents, part.starts())
            np.save(given, part.given())
            np.save(sketches, part.sketches())
            files += [self.folder / name_of(self.number, split, "tokens"), documents, given]
        record = {
            "number": self.number,
            "position": list(position),
            "last": last,
            "empty": self.empty,
            "largest": self.largest,
            "splits": {split: part.counts() for split, part in self.splits.items()},
            "files": {file.name: _described(file) for file in files},
        }
        replace_file(self.folder / f"{self.number:05d}.json", json.dumps(record, indent=1))
        return record

    def abandon(self) -> None:
        """Close the files; of a shard that was not finished the next attempt writes them anew."""
        for part in self.splits.values():
            part.stream.close()


class _SplitWriter:
    """One split of a shard."""

    def __init__(self, file: Path) -> None:
        self.stream = file.open("wb")
        self.tokens = self.bytes = 0
        self._starts: list[np.ndarray] = [np.empty(0, np.int64)]
        self._given: list[np.ndarray] = [NOTHING_GIVEN]
        self._sketches: list[np.ndarray] = [np.empty((0, SKETCH), np.uint64)]

    def add(self, part: Encoded) -> None:
        try:
            part.tokens.tofile(self.stream)
        except OSError as error:  # of a full disk numpy says how much it wrote, not where
            where = shown(str(self.stream.name))
            raise RunError(f"{where}: cannot be written; is the disk full? ({error.strerror or error})") from None
        self._starts.append(part.starts + self.tokens)
        self._given.append(part.given + self.tokens)
        self._sketches.append(part.sketches)
        self.tokens += len(part.tokens)
        self.bytes += part.size

    def starts(self) -> np.ndarray:
        return np.concatenate(self._starts)

    def given(self) -> np.ndarray:
        return np.concatenate(self._given)

    def sketches(self) -> np.ndarray:
        return np.concatenate(self._sketches)

    def counts(self) -> dict[str, int]:
        given, documents = self.given(), sum(map(len, self._starts))
        given_tokens = int((given[:, 1] - given[:, 0]).sum())
        return {"documents": documents, "tokens": self.tokens, "bytes": self.bytes, "given": given_tokens}

    def close(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()


def name_of(number: int, split: Split, what: str) -> str:
    """The name of a file of a shard."""
    return f"{number:05d}.{split}.{what}"


def finished_shards(folder: Path) -> list[dict[str, Any]]:
    """The records of the shards that are whole, from the first without a gap."""
    records: list[dict[str, Any]] = []
    while (file := folder / f"{len(records):05d}.json").exists():
        records.append(json.loads(file.read_text()))
    return records


def read_shard(
    folder: Path, split: Split, shard: Mapping[str, Any], dtype: str
) -> tuple[TokenFile, np.ndarray, np.ndarray]:
    """The tokens of a split in a shard, where its documents begin, and what of them is given."""
    number, length = shard["number"], shard["splits"][split]["tokens"]
    starts, given = (np.load(folder / name_of(number, split, f"{what}.npy")) for what in ARRAYS[:2])
    name = name_of(number, split, "tokens")
    return TokenFile(folder / name, length, dtype, shard["files"][name]), starts, given


def check_shard(folder: Path, shard: Mapping[str, Any], split: Split | None = None, *, every: bool = False) -> int:
    """Check the files of a shard (of one split) against its record; returns the bytes that were read for it.

    Sizes are always compared, digests where the time of change is not the recorded one, or for `every` file.

    Raises:
        RunError: a file is missing, or is not what was written.
    """
    total, where = 0, f"token store {shown(str(folder))}: shard {shard['number']}"
    for name, expected in shard["files"].items():
        if split is None or name.split(".")[1] == split:
            total += _check_file(folder / name, expected, where, every)
    return total


def _check_file(file: Path, expected: Mapping[str, Any], where: str, every: bool) -> int:
    try:
        size, changed = stamp(file)
    except OSError as error:
        raise RunError(f"{where}: {file.name}: {error.strerror}; {AGAIN}") from None
    if size != expected["size"]:
        raise RunError(f"{where}: {file.name} has {size:,} bytes, expected {expected['size']:,}; {AGAIN}")
    if changed == expected["mtime_ns"] and not every:
        return 0
    found = sha256_of(file) if every else digests_of([file])[0]
    if found != expected["sha256"]:
        digests = f"SHA-256 {found[:16]}, expected {expected['sha256'][:16]}"
        raise RunError(f"{where}: {file.name} is damaged: {digests}; {AGAIN}")
    return size


def _described(file: Path) -> dict[str, Any]:
    size, changed = stamp(file)
    return {"sha256": sha256_of(file), "size": size, "mtime_ns": changed}
