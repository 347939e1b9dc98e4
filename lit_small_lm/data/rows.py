"""Rows of one file: parquet, arrow, JSON lines or CSV, the columns that are wanted alone, here or on a hub.

Parquet and arrow are decoded by pyarrow, as in `datasets`. JSON lines and CSV are read by Python's own parsers instead:
the readers of `datasets` settle on one type for a column and turn the number 5 into the text '5' without a word.
"""

import csv
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

from lit_small_lm.errors import RequestError, RunError, first_line, nearest, one, shown

FORMATS = {
    ".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
COMPRESSED = frozenset((".gz", ".bz2", ".xz", ".zst"))
ROWS = 1000
"""Rows decoded at once."""
FIRST = 100
"""Rows of JSON that are looked at for their keys."""
KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}
LISTS = ("list<", "large_list<")
"""How the names of Arrow's types of lists begin."""
T = TypeVar("T")


class Column(NamedTuple):
    """A column that is wanted."""

    name: str
    option: str
    """Where it was asked for."""
    kind: Literal["text", "list"] = "text"


class Row(NamedTuple):
    """A row's number, from 1, and what stands in the columns asked for: None where there is nothing."""

    number: int
    values: tuple[Any, ...]


class Table(NamedTuple):
    """An open file of rows."""

    columns: dict[str, str]
    """Name -> type; "any" where each row has its own."""
    rows: Callable[[Sequence[str]], Iterator[Row]]
    """The rows, of some columns."""
    count: int = 0
    """How many rows there are, 0 if unknown."""


def format_of(name: str) -> str | None:
    """The format a file's name says it has, or None."""
    path = PurePosixPath(name)
    suffix = PurePosixPath(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix
    return FORMATS.get(suffix.lower())


def is_table(name: str) -> bool:
    """Whether a file's name says that it is read by rows; .json may be anything."""
    return format_of(name) is not None and ".json" not in PurePosixPath(name.lower()).suffixes


def read_rows(file: str, columns: Sequence[Column], make: Callable[[Row], T]) -> Iterator[T]:
    """What `make` makes of each row of some columns of a file (a path, or an address that fsspec knows).

    Raises:
        RequestError: there is no such column, or it is of another kind.
        RunError: the file is damaged, or `make` refuses a row; the file is named.
    """
    with _opened(file) as stream:
        table = _table(file, stream)
        check_columns(file, table, columns)
        yield from _translated(file, map(make, table.rows([column.name for column in columns])))


def look(file: str, columns: Sequence[Column]) -> int:
    """Check that a file has the columns; returns how many rows it has, 0 if that is not known."""
    with _opened(file) as stream:
        table = _table(file, stream)
        check_columns(file, table, columns)
        return table.count


def check_columns(file: str, table: Table, columns: Sequence[Column]) -> None:
    """Raises RequestError if a column is not there or of another kind."""
    for name, option, kind in columns:
        found = table.columns.get(name)
        if found is None:
            names = ", ".join(map(shown, list(table.columns)[:12])) or "none"
            raise RequestError(
                f"{option}: {shown(name)!r} is no column of {shown(file)}; "
                f"columns: {names}{nearest(name, table.columns)}"
            )
        fits = found == "text" if kind == "text" else found.startswith(LISTS)
        if not fits and found != "any":
            raise RequestError(f"{option}: {shown(name)!r} of {shown(file)} is {found}; allowed: {kind}")


def _opened(file: str) -> Any:
    import fsspec

    packed = PurePosixPath(file).suffix.lower()
    if packed in COMPRESSED and fsspec.utils.infer_compression(file) is None:
        raise RequestError(f"data.source.path: {shown(file)}: {packed} needs a package: pip install zstandard")
    try:
        if "://" in file:
            return fsspec.open(file, "rb", compression="infer").open()
        return fsspec.filesystem("file").open(file, "rb", compression="infer")
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(file, error) from None


def _table(file: str, stream: Any) -> Table:
    reader = {"parquet": _parquet, "arrow": _arrow, "json": _json, "csv": _csv}[format_of(file) or "json"]
    try:
        return reader(stream)
    except RunError as error:
        raise RunError(f"{shown(file)}: {error}") from None
    except _broken() as error:
        raise _unreadable(file, error) from None


def _translated(file: str, rows: Iterator[T]) -> Iterator[T]:
    """What is made of rows; whatever goes wrong with them names the file."""
    try:
        yield from rows
    except RunError as error:
        raise RunError(f"{shown(file)}, {error}") from None
    except _broken() as error:
        raise _unreadable(file, error) from None


def _broken() -> tuple[type[Exception], ...]:
    import pyarrow

    packed = (EOFError, zlib.error, lzma.LZMAError)
    return (pyarrow.ArrowException, OSError, ValueError, csv.Error, RecursionError, *packed)


def _unreadable(file: str, error: Exception) -> RunError:
    return RunError(f"{shown(file)}: cannot be read as {format_of(file)}: {first_line(error)}")


def text_of(where: str, value: object) -> str:
    """A value that has to be text. Raises RunError, which begins with `where`, if it is none."""
    if not isinstance(value, str):
        raise RunError(f"{where}: {described(value)}; allowed: text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RunError(f"{where}: character {error.start} is half of a pair (\\ud8..), which is no text") from None
    return value


def described(value: object) -> str:
    """A value and its type, in words."""
    if value is None:
        return "nothing is there"
    return f"{shown(value)} is {KINDS.get(type(value)) or one(type(value).__name__)}"


# -------------------------------------------------------------------------------------------------- parquet and arrow
def _columns(schema: Any) -> dict[str, str]:
    import pyarrow.types as kinds

    def name(kind: Any) -> str:
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        is_text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
        return "text" if is_text else str(kind)

    return {field.name: name(field.type) for field in schema}


def _parquet(stream: Any) -> Table:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        return _numbered(file.iter_batches(ROWS, columns=list(columns)), columns)

    return Table(_columns(file.schema_arrow), rows, file.metadata.num_rows)


def _arrow(stream: Any) -> Table:
    import pyarrow.ipc

    start = stream.read(6)
    stream.seek(0)
    if start == b"ARROW1":
        file = pyarrow.ipc.open_file(stream)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
        return Table(_columns(file.schema), lambda columns: _numbered(batches, columns))
    reader = pyarrow.ipc.open_stream(stream)
    return Table(_columns(reader.schema), lambda columns: _numbered(reader, columns))


def _numbered(batches: Iterable[Any], columns: Sequence[str]) -> Iterator[Row]:
    done = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            values = zip(*(part.column(name).to_pylist() for name in columns), strict=True)
            for number, found in enumerate(values, done + 1):
                yield Row(number, found)
            done += part.num_rows


# ------------------------------------------------------------------------------------------------------ JSON and CSV
def _json(stream: Any) -> Table:
    """Objects, one a line; or one list of them."""
    first = stream.read(1)
    while first.isspace():
        first = stream.read(1)
    stream.seek(0)
    if first == b"[":
        objects = list(enumerate(json.load(stream), 1))
        begin, rest = objects[:FIRST], iter(objects[FIRST:])
    else:
        lines = _objects(stream)
        begin = [item for _, item in zip(range(FIRST), lines, strict=False)]
        rest = lines
    names = {key: "any" for _, found in begin if isinstance(found, dict) for key in found}

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for objects in (begin, rest):
            for number, found in objects:
                if not isinstance(found, dict):
                    raise RunError(f"row {number}: {shown(found)} is no JSON object")
                yield Row(number, tuple(found.get(column) for column in columns))

    return Table(names, rows)


def _objects(stream: Any) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        try:
            yield number, json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            raise RunError(f"row {number}: no JSON ({error.msg} at character {error.colno})") from None
        except RecursionError:
            raise RunError(f"row {number}: JSON in more levels than can be read") from None
        except UnicodeDecodeError as error:
            raise RunError(f"row {number}: byte {error.start} (0x{line[error.start]:02x}) is not UTF-8") from None
        except ValueError:
            raise RunError(f"row {number}: a whole number of more digits than can be read") from None


def _csv(stream: Any) -> Table:
    """CSV has no types: every value is text, a missing one none."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    start = text.readline()
    delimiter = "\t" if "\t" in start and "," not in start.split("\t")[0] else ","
    names = next(csv.reader([start], delimiter=delimiter), [])

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        places = [names.index(column) for column in columns]
        number = 0
        try:
            for number, row in enumerate(csv.reader(text, delimiter=delimiter, strict=True), 1):
                yield Row(number, tuple(row[at] if at < len(row) else None for at in places))
        except csv.Error as error:
            raise RunError(f"row {number + 1}: no CSV ({error})") from None

    return Table(dict.fromkeys(names, "text"), rows)
