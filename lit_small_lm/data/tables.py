"""Tables of documents, by `datasets`: parquet, JSON lines, CSV and arrow, in files here or in a data set of a hub.

`datasets` finds the files that belong to a split; each is then a part of the source and read row by row where it lies,
without a copy (see `rows`). A hub's file stands for itself by its revision and path, a local one by its content.
"""

import abc
import contextlib
import functools
import glob
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lit_small_lm.data.cache import Stamp, check_unchanged, digests_of, stamp
from lit_small_lm.data.hub import may_be_on_a_hub
from lit_small_lm.data.rows import FORMATS, Column, Row, described, format_of, look, read_rows, text_of
from lit_small_lm.errors import RequestError, RunError, first_line, nearest, path_of, shown
from lit_small_lm.plugin import Document, Source, SourcePart

WHERE = "data.source.path"


class _File(NamedTuple):
    address: str
    before: Stamp | None
    """Of a local file; None of one on a hub."""


@dataclass(frozen=True, kw_only=True)
class Tables(Source):
    """Rows of files, every one a document; what of a row makes its text is said by subclasses."""

    path: str | None = None
    """A data set's name on the hub, or a local file, folder or pattern, such as my_data/*.parquet."""
    subset: str | None = None
    """The configuration of a data set that has several."""
    split: str = "train"
    """Which of the data set's own splits to read; what is held out is chosen from it by the documents' text."""
    revision: str | None = None
    """A commit, tag or branch of a data set on the hub; null: the newest."""

    @abc.abstractmethod
    def columns(self) -> Sequence[Column]:
        """The columns that are read. Raises RequestError where they are asked for in a way that cannot be."""

    @abc.abstractmethod
    def document(self, name: str, row: Row) -> Document:
        """The document of a row, called `name`. Raises RunError, which begins with the row, if there cannot be one."""

    def decides(self) -> Sequence[str]:
        """What decides the text of a row beside its content: part of the fingerprint."""
        return [column.name for column in self.columns()]

    def parts(self) -> Sequence[SourcePart]:
        return self._parts

    def read(self, part: int) -> Iterator[Document]:
        address, before = self._files[part]
        if before is not None:
            check_unchanged(Path(address), before)
        make = functools.partial(_document, self, address)
        yield from read_rows(address, self.columns(), make)
        if before is not None:
            check_unchanged(Path(address), before)

    @cached_property
    def _files(self) -> list[_File]:
        if not self.path:
            raise RequestError(f"{WHERE}: {self.path!r}; allowed: a hub name, or a file, folder or pattern of tables")
        addresses = _local(self.path, self.subset, self.split) or _of_hub(self)
        if not addresses:
            raise RequestError(f"{WHERE}: {shown(self.path)} holds no file of rows ({', '.join(FORMATS)})")
        strange = [address for address in addresses if format_of(address) is None]
        if strange:
            raise RequestError(
                f"{WHERE}: {shown(strange[0])} is no file of rows; allowed: {', '.join(FORMATS)}; "
                "text files are read with: --data.source TextFiles"
            )
        return [_File(address, None if "://" in address else stamp(Path(address))) for address in addresses]

    @cached_property
    def _parts(self) -> list[SourcePart]:
        addresses = [file.address for file in self._files]
        on_hub = self._files[0].before is None
        columns = self.columns()
        counts = [look(address, columns) for address in (addresses[:1] if on_hub else addresses)]
        counts += [0] * (len(addresses) - len(counts))
        digests = addresses if on_hub else digests_of([Path(address) for address in addresses])
        return [
            SourcePart(address, before[0] if before else 0, _digest(digest, *self.decides()), count)
            for (address, before), digest, count in zip(self._files, digests, counts, strict=True)
        ]


def _document(source: Tables, address: str, row: Row) -> Document:
    return source.document(f"{address}, row {row.number}", row)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class HFDataset(Tables):
    """Rows of parquet, JSON lines, CSV or arrow files, by Hugging Face datasets; every row is a document.

    Rows whose text is null, missing or white space are skipped and counted. A value that is not text is an error that
    names file and row; in CSV, which has no types, every value is text.
    """

    text_column: str = "text"
    """The column that holds the text."""

    def columns(self) -> Sequence[Column]:
        return [Column(self.text_column, "data.source.text_column")]

    def document(self, name: str, row: Row) -> Document:
        (value,) = row.values
        if value is not None and not isinstance(value, str):
            raise RunError(f"row {row.number}: {described(value)}; allowed: text, or null for a row to skip")
        return Document(name, text_of(f"row {row.number}", value or ""))


# -------------------------------------------------------------------------------------------------------- local files
def _local(path: str, subset: str | None, split: str) -> list[str]:
    """Local files of a path; none if it may be a hub's name."""
    root = path_of(path)
    if glob.has_magic(str(root)) and not root.exists():
        return _matching(path, str(root))
    if root.is_file():
        return [str(root)]
    if root.is_dir():
        saved = _saved_to_disk(root, split)
        return saved or _resolved(str(root), subset, split, None, path)
    if not may_be_on_a_hub(path) or format_of(path):
        raise RequestError(f"{WHERE}: {shown(path)} does not exist (looked for {shown(str(root.absolute()))})")
    return []


def _matching(path: str, pattern: str) -> list[str]:
    found = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
    if not found:
        raise RequestError(f"{WHERE}: no file matches {shown(path)} (looked in {Path.cwd()})")
    return found


def _saved_to_disk(root: Path, split: str) -> list[str]:
    """The arrow files of a folder that `Dataset.save_to_disk` wrote."""
    folder = next((place for place in (root, root / split) if (place / "state.json").exists()), None)
    return sorted(str(file) for file in folder.glob("*.arrow")) if folder else []


# ----------------------------------------------------------------------------------------------------------- datasets
def _of_hub(source: Tables) -> list[str]:
    return _resolved(source.path, source.subset, source.split, source.revision, source.path)


def _resolved(path: str, subset: str | None, split: str, revision: str | None, typed: str) -> list[str]:
    """The data files of a split, found by the builder of `datasets`; nothing of the data set runs.

    Raises:
        RequestError: there is no such data set, subset or split, or it needs a script of its own.
        RunError: the hub cannot be reached.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        try:
            builder = datasets.load_dataset_builder(path, subset, revision=revision, cache_dir=scratch)
        except (datasets.data_files.EmptyDatasetError, datasets.exceptions.DataFilesNotFoundError):
            return []
        except (datasets.exceptions.DatasetNotFoundError, RuntimeError, ValueError) as error:
            raise RequestError(f"{WHERE}: {shown(typed)}: {first_line(error)}{_hint(error)}") from None
        except (OSError, HfHubHTTPError) as error:
            what = f"{shown(typed)} is no file or folder here, and no hub could be asked"
            raise RunError(f"{WHERE}: {what}: {first_line(error)}") from None
    files = builder.config.data_files or {}
    if split not in files:
        names = ", ".join(map(str, files)) or "none"
        near = nearest(split, map(str, files))
        raise RequestError(f"data.source.split: {shown(split)!r} is no split of {shown(typed)}; known: {names}{near}")
    return [str(file) for file in files[split]]


def _hint(error: Exception) -> str:
    return "; nothing of it was run; convert it to parquet" if "script" in str(error) else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and retry notices of the hub's library."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    before = [logger.level for logger in loggers]
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
