"""Sources of documents: text files, by default the Python standard library's own sources."""

import os
import shlex
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lit_small_lm.data.cache import Stamp, check_unchanged, digests_of, stamp
from lit_small_lm.data.rows import is_table
from lit_small_lm.errors import RequestError, path_of, shown
from lit_small_lm.plugin import Document, Source, SourcePart

SUFFIXES = frozenset(
    ".c .cc .cfg .cpp .css .go .h .hpp .htm .html .ini .ipynb .java .js .json .jsx .kt .lua .md .mjs .pl "
    ".php .py .pyi .r .rb .rs .rst .scala .sh .sql .srt .swift .tex .toml .ts .tsx .txt .xml .yaml .yml".split()
)
LEFT_OUT = frozenset("encodings idlelib lib2to3 pydoc_data site-packages dist-packages test tests idle_test".split())


@dataclass(frozen=True, kw_only=True)
class TextFiles(Source):
    """Text files of a folder tree, or one file; every file is a document."""

    path: str | None = None
    """A file, or a folder that is searched for text files (.txt, .md, .py and the like); null: the Python standard
    library's sources, without tests, encodings and generated data."""

    def parts(self) -> Sequence[SourcePart]:
        return self._parts

    def read(self, part: int) -> Iterator[Document]:
        name, file, before = self._files[part]
        check_unchanged(file, before)
        text = read_text(file)
        check_unchanged(file, before)
        yield Document(name, text)

    @cached_property
    def _files(self) -> list[tuple[str, Path, Stamp]]:
        found = [(name, file, stamp(file)) for name, file in files_of(self.path)]
        if not found:
            what = f"holds no text file ({', '.join(sorted(SUFFIXES)[:6])}, ...)"
            if any(is_table(name) for _, _, names in os.walk(path_of(self.path)) for name in names):
                what = f"holds tables, no text; {_by_rows(self.path)}"
            raise RequestError(f"data.source.path: {shown(str(self.path))} {what}")
        return found

    @cached_property
    def _parts(self) -> list[SourcePart]:
        digests = digests_of([file for _, file, _ in self._files])
        files = zip(self._files, digests, strict=True)
        return [SourcePart(name, size, digest) for (name, _, (size, _)), digest in files]


def files_of(path: str | None) -> Iterator[tuple[str, Path]]:
    """Name (path below the root, with /) and path of every text file, in the order of names.

    Raises:
        RequestError: the path does not exist, or is a table.
    """
    if path == "":
        raise RequestError("data.source.path: '' is empty; allowed: a file, a folder, or null for the standard library")
    root = path_of(path or sysconfig.get_paths()["stdlib"])
    if root.is_file():
        if is_table(root.name):
            raise RequestError(f"data.source.path: {shown(str(path))} is a table, no text; {_by_rows(path)}")
        yield root.name, root
        return
    if not root.is_dir():
        raise RequestError(
            f"data.source.path: {shown(str(path))} does not exist (looked for {shown(str(root.absolute()))})"
        )
    suffixes, left_out = (SUFFIXES, frozenset()) if path else (frozenset({".py"}), LEFT_OUT)
    yield from files_below(root, suffixes, left_out)


def _by_rows(path: str) -> str:
    return f"read its rows with: --data.source HFDataset --data.source.path {shown(shlex.quote(path))}"


def files_below(root: Path, suffixes: frozenset[str], left_out: frozenset[str] = frozenset()) -> list[tuple[str, Path]]:
    """Name and path of every file with one of the suffixes, in the order of names; hidden ones are left out."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__")) and name not in left_out]
        for name in files:
            file = Path(folder, name)
            if file.suffix.lower() in suffixes and not name.startswith(".") and file.is_file():
                found[file.relative_to(root).as_posix()] = file
    return sorted(found.items())


def read_text(file: Path) -> str:
    """The text of a file. Raises RequestError naming the byte where it is not UTF-8."""
    data = file.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise RequestError(
            f"{shown(str(file))}: byte {error.start} (0x{byte:02x}) is not UTF-8; save it as UTF-8"
        ) from None
    del data
    return text.removeprefix("\ufeff").replace("\r\n", "\n")
