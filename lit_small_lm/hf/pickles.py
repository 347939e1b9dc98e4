"""Weights of an old public folder, which lie in pickles (pytorch_model.bin, or shards and their index).

A pickle is a program. It is read here only where a command asks for it, by torch's own reader for tensors and plain
containers (`weights_only=True`, whatever the environment says), which refuses every other name in the file before it is
called; what comes out goes through the same checks as weights from safetensors.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.errors import RequestError, RunError, shown
from lit_small_lm.folder import DTYPES, PICKLES, Header, Weights, read_json, within

ONE, INDEX = PICKLES
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Unpickled(Weights):
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor], files: Mapping[str, Path]) -> None:
        super().__init__(
            {name: Header(files[name], tuple(t.shape), NAMES.get(t.dtype, str(t.dtype))) for name, t in tensors.items()}
        )
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


def read_pickles(folder: Path) -> Unpickled:
    """The tensors in the pickles of a folder.

    Raises:
        RequestError: there is none, or it holds something beside tensors by name.
        RunError: it is damaged, or names something that is neither a tensor nor plain data; nothing of it has run.
    """
    folder = folder.resolve()
    if (folder / INDEX).exists():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise RequestError(f"{shown(str(folder / INDEX))}: weight_map does not name a file for every tensor")
        names = sorted(set(places.values()))
    else:
        names = [ONE]
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for file in (within(folder, name) for name in names):
        found = _tensors(file)
        tensors |= found
        files |= dict.fromkeys(found, file)
    return Unpickled(tensors, files)


def _tensors(file: Path) -> dict[str, Tensor]:
    name, content = shown(str(file)), _loaded(file)
    if not isinstance(content, dict):
        raise RequestError(f"{name}: it holds a {type(content).__name__}; allowed: tensors by name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise RequestError(f"{name}: {shown(key)} is a {type(value).__name__}; allowed: tensors by name")
    return content


def _loaded(file: Path) -> Any:
    name = shown(str(file))
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise RunError(f"{name} was refused: it is not tensors and plain data only; nothing of it has run") from None
    except Exception as error:  # what torch.load raises on damaged bytes is anything
        raise RunError(f"{name} is damaged ({type(error).__name__})") from None
