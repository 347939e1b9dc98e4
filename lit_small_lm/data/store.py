"""The token store: a source tokenised once, kept under its content and tokenizer.

A store is a folder of shards (see `shards`), a copy of the tokenizer and, written last, `manifest.json`. A preparation
that was interrupted goes on from its last whole shard, and what comes of it is the same to the byte.
"""

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_small_lm.data import worker
from lit_small_lm.data.cache import key_of, replace_file
from lit_small_lm.data.duplicates import count
from lit_small_lm.data.encoding import ReadTo, dtype_of, text_batches
from lit_small_lm.data.progress import Meter, Tell
from lit_small_lm.data.shards import AGAIN, ShardWriter, SplitTokens, check_shard, finished_shards, name_of, read_shard
from lit_small_lm.data.splits import SPLITS, Splits
from lit_small_lm.data.tokenizer import check_specials, digest
from lit_small_lm.errors import RequestError, RunError, of_a_record, path_of, shown
from lit_small_lm.plugin import Encoder, Source, Split, Tokenizer

FORMAT = 3
"""Since 3 it says what of the documents is given."""
SHARD_TOKENS = 1 << 26
"""Tokens after which a shard is closed, at the end of a batch of documents."""
SMALL = 16 * 10**6
"""Bytes of a source that one process tokenises faster than several are started."""
DTYPES = ("uint16", "uint32")
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A prepared source and its encoder."""

    folder: Path
    encoder: Encoder

    @staticmethod
    def open(folder: Path) -> "TokenStore":
        """A store by its folder alone, tokenizer included.

        Raises:
            RequestError: no store, an unfinished one, one of another format, or ids outside the vocabulary.
        """
        file = path_of(folder) / TOKENIZER
        if not file.with_name(MANIFEST).exists():
            what = "its preparation was interrupted; go on with the same command" if file.exists() else "no token store"
            raise RequestError(f"data.store: {shown(str(folder))}: {what} (no {MANIFEST})")
        record = _json_of(file, ("spec", "record"))
        if record["spec"] is None:
            raise RequestError(f"data.store: {shown(str(folder))}: it does not say by which tokenizer it was made")
        with of_a_record(f"token store: {shown(str(file))}"):
            store = TokenStore(file.parent, Tokenizer.from_dict(record["spec"]).restore(record["record"]))
        store.check()
        return store

    def check(self) -> None:
        """Raises RequestError if the store is of another format or does not go with its tokenizer."""
        with of_a_record(f"token store: {shown(str(self.folder / MANIFEST))}"):
            self._check()

    def _check(self) -> None:
        manifest, where = self._manifest, f"token store {shown(str(self.folder))}"
        if manifest["tokenizer"] != digest(self.encoder):
            found = digest(self.encoder)
            raise RequestError(f"{where}: made with tokenizer {manifest['tokenizer'][:16]}, this one is {found[:16]}")
        if manifest["dtype"] not in DTYPES:
            raise RequestError(f"{where}: ids are {manifest['dtype']}, which may be negative; allowed: uint16, uint32")
        size = self.encoder.specials.vocab_size
        for number, shard in enumerate(manifest["shards"]):
            if not 0 <= shard["largest"] < size:
                place = _place_of(self.folder, number, manifest["dtype"], size)
                raise RequestError(f"{where}: id {shard['largest']} {place}; vocab_size is {size}")

    def summary(self) -> dict[str, Any]:
        """The manifest: counts per split, digests, shards."""
        return self._manifest

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        file = self.folder / MANIFEST
        form = _json_of(file, ("format",))["format"]
        if form != FORMAT:
            raise RequestError(f"token store {self.folder}: format {form}; this version reads {FORMAT}")
        return _json_of(file, ("tokenizer", "dtype", "splits", "shards", "fingerprint"))

    def split(self, split: Split) -> SplitTokens:
        """The tokens of a split.

        Raises:
            RunError: a file has not the recorded size, or was changed and has not the recorded digest.
        """
        with of_a_record(f"token store: {shown(str(self.folder / MANIFEST))}"):
            return self._split(split)

    def _split(self, split: Split) -> SplitTokens:
        manifest = self._manifest
        pieces, starts, given, at = [], [], [], 0
        for shard in manifest["shards"]:
            check_shard(self.folder, shard, split)
            piece, documents, runs = read_shard(self.folder, split, shard, manifest["dtype"])
            pieces.append(piece)
            starts.append(documents + at)
            given.append(runs + at)
            at += piece.length
        end = np.array([self.encoder.specials.end], manifest["dtype"])
        return SplitTokens([*pieces, end], np.concatenate(starts), np.concatenate(given))

    def verify(self) -> int:
        """Read every file and compare its digest; returns the bytes read. Raises RunError naming the shard."""
        with of_a_record(f"token store: {shown(str(self.folder / MANIFEST))}"):
            return sum(check_shard(self.folder, shard, every=True) for shard in self._manifest["shards"])


def prepare(
    source: Source, encoder: Encoder, cache: Path, tell: Tell | None = None, tokenizer: Tokenizer | None = None
) -> TokenStore:
    """The store of one component, made now if it is not there yet, or gone on with where it was interrupted.

    Of several processes that ask for the same store one makes it, the others wait.

    Args:
        source: one component; a mixture is prepared component by component.
        encoder: what tokenises it.
        cache: the folder that stores are kept in.
        tell: called after every batch of documents.
        tokenizer: the Spec behind `encoder`, so that the store can be opened by its folder alone.

    Raises:
        RequestError: the source holds no text.
        RunError: it is damaged or changes meanwhile, or a tokenising process ends.
    """
    check_specials(encoder)
    folder = cache / "tokens" / key_of(FORMAT, source.fingerprint(), digest(encoder), SHARD_TOKENS)
    if not (folder / MANIFEST).exists():
        splits = Splits.of(source)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not (folder / MANIFEST).exists():
                record = {"spec": tokenizer and tokenizer.to_dict(), "record": encoder.record()}
                replace_file(folder / TOKENIZER, json.dumps(record))
                _write(folder, source, splits, encoder, tell)
    store = TokenStore(folder, encoder)
    store.check()
    return store


def _write(folder: Path, source: Source, splits: Splits, encoder: Encoder, tell: Tell | None) -> None:
    """Make what is missing of a store."""
    records, dtype = finished_shards(folder), dtype_of(encoder)
    start = ReadTo(*records[-1]["position"]) if records else ReadTo(0, 0)
    if not (records and records[-1]["last"]):
        _write_shards(folder, records, text_batches(source, splits, start), encoder, Meter(source, start, tell))
    arrays = {split: [_sketches(folder, number, split) for number in range(len(records))] for split in SPLITS}
    found = count(arrays)
    manifest = {
        "format": FORMAT,
        "source": source.to_dict(),
        "fingerprint": source.fingerprint(),
        "tokenizer": digest(encoder),
        "vocab_size": encoder.specials.vocab_size,
        "dtype": dtype,
        "rule": splits.rule,
        "empty": sum(record["empty"] for record in records),
        "splits": {split: {**_total(records, split), **found[split]._asdict()} for split in SPLITS},
        "shards": records,
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1))
    for file in folder.glob("*.sketches.npy"):
        file.unlink()


def _write_shards(folder: Path, records: list, batches: Iterator, encoder: Encoder, meter: Meter) -> None:
    """Write shards from where `records` end, and append to them."""
    dtype = dtype_of(encoder)
    processes = 1 if meter.small(SMALL) else worker.cores()
    shard = ShardWriter(folder, len(records), dtype)
    try:
        for batch, found in worker.encoded_in_order(encoder, batches, processes):
            shard.add(found, batch.empty)
            if batch.whole and shard.length >= SHARD_TOKENS:
                records.append(shard.close(batch.position, last=False))
                shard = ShardWriter(folder, len(records), dtype)
            meter.read(batch, found)
        records.append(shard.close(batch.position, last=True))
    finally:
        shard.abandon()


def _json_of(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The content of a file of a store. Raises RunError if it is no mapping that has the keys."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"token store: {shown(str(file))} cannot be read ({error}); delete the folder") from None
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        raise RunError(f"token store: {shown(str(file))} is damaged: it does not say {' or '.join(keys)}; {AGAIN}")
    return found


def _sketches(folder: Path, number: int, split: Split) -> np.ndarray:
    return np.load(folder / name_of(number, split, "sketches.npy"), mmap_mode="r")


def _total(records: list[dict[str, Any]], split: Split) -> dict[str, int]:
    counts = ("documents", "tokens", "bytes", "given")
    return {what: sum(record["splits"][split][what] for record in records) for what in counts}


def _place_of(folder: Path, number: int, dtype: str, vocab_size: int) -> str:
    """Where a shard holds its first id outside the vocabulary, in words."""
    for split in SPLITS:
        file = name_of(number, split, "tokens")
        outside = np.fromfile(folder / file, dtype) >= vocab_size
        if outside.any():
            return f"at token {int(outside.argmax())} of {file}"
    return f"in shard {number}, by its record"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process; waits for it."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise RunError(
                f"data.cache_dir: {shown(str(folder))} cannot be locked ({error.strerror}); choose another"
            ) from None
        yield
