"""A folder of a public model as plain data: its config.json, and its weights, read from safetensors one by one.

Nothing in such a folder is run. JSON files have a size limit and hold finite numbers; pickles are refused; a file that
the index of shards names lies in the folder itself, or is a link into the cache of a hub. Names, shapes and types come
from the headers, so that a folder is found to fit before a tensor is read.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_small_lm.errors import RequestError, RunError, first_line, shown

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
LIMITS = {CONFIG: 1 << 22, INDEX: 1 << 26, TOKENIZER: 1 << 28}
"""Bytes that a JSON file may have, by name; the largest public ones have an eighth."""
SMALL = 1 << 20
"""Of any other JSON file."""
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights that are read; others (8-bit and smaller) are quantised and no plain weights."""


class Header(NamedTuple):
    """What a file says of a tensor before it is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """In the words of safetensors: "F32", "BF16"."""


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by name, each read when it is asked for."""

    def __init__(self, headers: Mapping[str, Header]) -> None:
        self.headers = headers
        self._files: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        file = self.headers[name].file
        if file not in self._files:
            self._files[file] = _opened(file)
        return _guarded(file, lambda: self._files[file].get_tensor(name))

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)


def folder_at(path: Path) -> Path:
    """The folder itself. Raises RequestError if it does not exist, is a file, or holds no config.json."""
    if not path.exists():
        raise RequestError(f"{shown(str(path))} does not exist; allowed: a folder with {CONFIG}")
    if not path.is_dir():
        raise RequestError(f"{shown(str(path))} is a file; allowed: a folder with {CONFIG}")
    if not (path / CONFIG).exists():
        raise RequestError(f"{shown(str(path))} holds no {CONFIG}")
    return path.resolve()


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
        RequestError: it is not there, too large, no JSON object, or holds NaN, an infinity or a key twice.
    """
    return read_json(folder_at(path) / CONFIG)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object as plain data. Raises RequestError as `read_config` does."""
    file = within(file.parent, file.name)
    refuse_large(file)
    name = shown(str(file))
    try:
        text = file.read_bytes().decode()
        found = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_without_twins)
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise RequestError(f"{name}: nested too deep") from None
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from None
    except ValueError as error:
        raise RequestError(f"{name}: no JSON: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise RequestError(f"{name}: it holds a {type(found).__name__}; allowed: a JSON object")
    return found


def refuse_large(file: Path) -> None:
    """Raise RequestError if a file is larger than one of its name ever has to be."""
    size, limit = file.stat().st_size, LIMITS.get(file.name, SMALL)
    if size > limit:
        raise RequestError(f"{shown(str(file))}: {size:,} bytes; allowed: at most {limit:,}")


def read_weights(folder: Path) -> Weights:
    """The tensors of model.safetensors, or of the shards that its index names; only headers are read.

    Raises:
        RequestError: there are none, only pickles, or a shard that the index names is not there.
        RunError: a file is damaged.
    """
    folder = folder.resolve()
    if (folder / INDEX).exists():
        return _sharded(folder)
    if (folder / WEIGHTS).exists():
        return Weights(_headers(within(folder, WEIGHTS)))
    pickled = [name for name in PICKLES if (folder / name).exists()]
    if pickled:
        raise RequestError(
            f"{shown(str(folder))}: its weights are a pickle ({pickled[0]}), which can run code; allowed: {WEIGHTS}; "
            "lit-small-lm import --read_pickle takes tensors and nothing else from it"
        )
    raise RequestError(f"{shown(str(folder))} holds no weights ({WEIGHTS}, or {INDEX} and its shards)")


def within(folder: Path, name: str) -> Path:
    """The file `name` of a folder. Raises RequestError if it is not there or lies elsewhere.

    A link leads to another file of the folder, or to the `blobs` of a hub's cache that the folder is a snapshot of.
    """
    if Path(name).name != name or not name.isprintable():
        raise RequestError(f"{shown(str(folder))}: {shown(name)!r} is no name of a file in it")
    file = folder / name
    if not file.is_file():
        raise RequestError(f"{shown(str(file))} does not exist, or is no file")
    home, target = folder.resolve(), file.resolve()
    blobs = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if target.parent not in (home, *blobs):
        raise RequestError(f"{shown(str(file))}: a link that leads out of its folder")
    return file


def _sharded(folder: Path) -> Weights:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise RequestError(f"{shown(str(folder / INDEX))}: weight_map does not name a file for every tensor")
    found: dict[str, Header] = {}
    for shard in sorted(set(places.values())):
        headers = _headers(within(folder, shard))
        twice = found.keys() & headers
        if twice:
            raise RequestError(f"{shown(str(folder))}: tensor {shown(min(twice))} lies in two shards")
        found |= headers
    missing = [name for name, shard in places.items() if name not in found or found[name].file.name != shard]
    if missing:
        where = shown(str(folder / places[missing[0]]))
        raise RequestError(f"{where}: tensor {shown(missing[0])} is not in it, where {INDEX} says it is")
    return Weights(found)


def _headers(file: Path) -> dict[str, Header]:
    content = _opened(file)
    slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    return {name: Header(file, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _opened(file: Path) -> Any:
    return _guarded(file, lambda: safe_open(file, framework="pt", device="cpu"))


def _guarded(file: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except SafetensorError as error:
        raise RunError(f"{shown(str(file))} is damaged: {first_line(error)}") from None


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise RequestError(f"it holds {shown(text)}; allowed: finite numbers")
    return float(text)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise RequestError(f"key {shown(twice)!r} stands in it twice")
    return found
