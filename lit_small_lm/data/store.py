"""The token store: a corpus tokenised once, cached by content and tokenizer.

A store is a folder with, for each split, `SPLIT.tokens.npy` (every document as the end token and its ids, one after
another, and a last end token), `SPLIT.documents.npy` (where each begins) and one `store.json`. It is written beside its
place and renamed, so an interrupted preparation leaves nothing behind that looks finished.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_small_lm.data.tokenizer import check_specials, digest
from lit_small_lm.errors import RunError
from lit_small_lm.plugin import Document, Encoder, Source, Split, Tokenizer

FORMAT = 1
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TEXTS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class SplitTokens:
    """The tokens of one split, memory-mapped."""

    tokens: np.ndarray
    """Ids of all documents, each begun by the end token, and a last end token."""
    starts: np.ndarray
    """Index in `tokens` where each document begins."""

    @property
    def documents(self) -> int:
        return len(self.starts)


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A prepared corpus and its encoder."""

    folder: Path
    encoder: Encoder

    def split(self, split: Split) -> SplitTokens:
        """The tokens of a split. Raises RunError if a file is damaged."""
        try:
            tokens = np.load(self.folder / f"{split}.tokens.npy", mmap_mode="r")
            return SplitTokens(tokens, np.load(self.folder / f"{split}.documents.npy"))
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"token store {self.folder}: {split} is damaged ({error}); delete the folder") from error

    def summary(self) -> dict[str, object]:
        """What `store.json` says: counts per split, the digests it was made from."""
        return json.loads((self.folder / "store.json").read_text())


def default_cache() -> Path:
    """Where stores are kept: $LIT_SMALL_LM_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LIT_SMALL_LM_CACHE") or Path(base) / "lit_small_lm")


def prepare(
    source: Source, tokenizer: Tokenizer, cache: Path, encoder_record: dict[str, object] | None = None
) -> TokenStore:
    """The store of a corpus, made now if it is not there yet; with `encoder_record`, by that tokenizer."""
    fingerprint = source.fingerprint()
    if encoder_record is None:
        encoder = _learned(source, tokenizer, cache, fingerprint)
    else:
        encoder = tokenizer.restore(encoder_record)
    check_specials(encoder)
    folder = cache / "tokens" / _key(FORMAT, fingerprint, digest(encoder))
    if not (folder / "store.json").exists():
        _write(folder, source, encoder)
    return TokenStore(folder, encoder)


def _learned(source: Source, tokenizer: Tokenizer, cache: Path, fingerprint: str) -> Encoder:
    learned = _key(FORMAT, fingerprint, json.dumps(tokenizer.to_dict(), sort_keys=True))
    file = cache / "tokenizers" / f"{learned}.json"
    if file.exists():
        return tokenizer.restore(json.loads(file.read_text()))
    encoder = tokenizer.learn(document.text for document in source.open("train"))
    _replace(file, json.dumps(encoder.record()))
    return encoder


def _write(folder: Path, source: Source, encoder: Encoder) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        counts = {split: _write_split(building, split, source.open(split), encoder) for split in SPLITS}
        record = {"format": FORMAT, "source": source.to_dict(), "fingerprint": source.fingerprint()}
        record |= {"tokenizer": digest(encoder), "vocab_size": encoder.specials.vocab_size, "splits": counts}
        (building / "store.json").write_text(json.dumps(record, indent=2))
        try:
            building.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "store.json").exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_split(folder: Path, split: Split, documents: Sequence[Document], encoder: Encoder) -> dict[str, int]:
    dtype = np.uint16 if encoder.specials.vocab_size <= 1 << 16 else np.uint32
    pieces, starts, at = [], [], 0
    for first in range(0, len(documents), TEXTS_AT_ONCE):
        for ids in encoder.encode([document.text for document in documents[first : first + TEXTS_AT_ONCE]]):
            starts.append(at)
            pieces.append(np.array([encoder.specials.end, *ids], dtype=dtype))
            at += len(ids) + 1
    pieces.append(np.array([encoder.specials.end], dtype=dtype))
    np.save(folder / f"{split}.tokens.npy", np.concatenate(pieces))
    np.save(folder / f"{split}.documents.npy", np.array(starts, dtype=np.int64))
    size = sum(len(document.text.encode()) for document in documents)
    return {"documents": len(documents), "tokens": at, "bytes": size}


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
        new.write(text)
    os.replace(new.name, file)


def _key(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]
