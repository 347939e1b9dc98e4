"""Sources of documents: text files, by default the Python standard library's own sources.

Whole files are held out: those whose path's SHA-256 is 0 modulo 20, half of them for validation, half for the test.
Where that leaves one of them empty (one file, or a handful), the held-out parts are the end of every file instead.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lit_small_lm.errors import RequestError, shown
from lit_small_lm.plugin import Document, Source, Split

SUFFIXES = frozenset(
    ".c .cc .cfg .cpp .css .csv .go .h .hpp .htm .html .ini .ipynb .java .js .json .jsonl .jsx .kt .lua .md .mjs .pl "
    ".php .py .pyi .r .rb .rs .rst .scala .sh .sql .srt .swift .tex .toml .ts .tsv .tsx .txt .xml .yaml .yml".split()
)
LEFT_OUT = frozenset("encodings idlelib lib2to3 pydoc_data site-packages dist-packages test tests idle_test".split())
HELD_OUT_SHARE = 0.05
"""Of every file, once for validation and once for the test, where files are too few to hold out whole ones."""


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Text files of a folder tree, or one file; every file is a document."""

    path: str | None = None
    """A file, or a folder that is searched for text files (.txt, .md, .py and the like); null: the Python standard
    library's sources, without tests, encodings and generated data."""

    def open(self, split: Split) -> Sequence[Document]:
        return self._corpus.splits[split]

    def fingerprint(self) -> str:
        return self._corpus.fingerprint

    @property
    def skipped(self) -> int:
        """Empty files that were left out."""
        return self._corpus.skipped

    @cached_property
    def _corpus(self) -> "_Corpus":
        return _Corpus(self.path)


class _Corpus:
    """All documents of a path, read once, split and fingerprinted."""

    def __init__(self, path: str | None) -> None:
        documents = [Document(name, read_text(file)) for name, file in files_of(path)]
        full = [document for document in documents if document.text.strip()]
        self.skipped = len(documents) - len(full)
        if not full:
            what = "is empty" if documents else f"holds no text file ({', '.join(sorted(SUFFIXES)[:6])}, ...)"
            raise RequestError(f"data.source.path: {shown(path or 'standard library')} {what}")
        self.splits = split_whole(full) or split_ends(full)
        parts = hashlib.sha256()
        for split, members in self.splits.items():
            for document in members:
                text = hashlib.sha256(document.text.encode()).hexdigest()
                parts.update(f"{split}\0{document.name}\0{text}\n".encode())
        self.fingerprint = parts.hexdigest()


def files_of(path: str | None) -> Iterator[tuple[str, Path]]:
    """Name (path below the root, with /) and path of every text file, in the order of names.

    Raises:
        RequestError: the path does not exist.
    """
    if path == "":
        raise RequestError("data.source.path: '' is empty; allowed: a file, a folder, or null for the standard library")
    root = Path(path or sysconfig.get_paths()["stdlib"]).expanduser()
    if root.is_file():
        yield root.name, root
        return
    if not root.is_dir():
        raise RequestError(f"data.source.path: {shown(str(path))} does not exist (looked for {root.absolute()})")
    suffixes, left_out = (SUFFIXES, frozenset()) if path else (frozenset({".py"}), LEFT_OUT)
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__")) and name not in left_out]
        for name in files:
            file = Path(folder, name)
            if file.suffix.lower() in suffixes and not name.startswith(".") and file.is_file():
                found[file.relative_to(root).as_posix()] = file
    yield from sorted(found.items())


def read_text(file: Path) -> str:
    """The text of a file. Raises RequestError naming the byte where it is not UTF-8."""
    data = file.read_bytes()
    try:
        return data.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise RequestError(
            f"{shown(str(file))}: byte {error.start} (0x{byte:02x}) is not UTF-8; save it as UTF-8"
        ) from None


def split_of(name: str) -> Split:
    """The split of a whole file, by the SHA-256 of its name."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    return "train" if number % 20 else ("validation" if number % 40 else "test")


def split_whole(documents: Sequence[Document]) -> dict[Split, list[Document]] | None:
    """Whole files by `split_of`, or None if a split would be empty."""
    splits: dict[Split, list[Document]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        splits[split_of(document.name)].append(document)
    return splits if all(splits.values()) else None


def split_ends(documents: Sequence[Document]) -> dict[Split, list[Document]]:
    """The last twentieth of every file is the test, the one before it validation."""
    splits: dict[Split, list[Document]] = {"train": [], "validation": [], "test": []}
    for name, text in documents:
        share = max(1, round(len(text) * HELD_OUT_SHARE))
        first, second = max(0, len(text) - 2 * share), len(text) - share
        pieces = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
        for split, piece in pieces.items():
            if piece:
                splits[split].append(Document(name, piece))
    return splits
