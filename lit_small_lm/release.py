"""A released model: a folder of plain data from which `checkpoint.load` rebuilds it, wherever it would take a run.

config.json             the record of a checkpoint: Specs by name, special ids, counters; no path, no environment
model.safetensors       weights, or shards and their index
tokenizer_record.json   the tokenizer; tokenizer.json is the same for other programs
SHA256SUMS              a digest of every file, as `sha256sum -c` reads it

Nothing in it is unpickled, imported or followed. Digests are compared first, then the headers of the weights with the
network that config.json describes, and only then is memory taken for a tensor.
"""

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.digests import SUMS, read_sums, refuse_changed
from lit_small_lm.errors import RequestError, RunError, of_a_record, shown
from lit_small_lm.folder import CONFIG, Header, Weights, folder_at, read_config, read_json, read_weights, within
from lit_small_lm.nn.moe import MoE
from lit_small_lm.plugin import Dims

OWN = "lit_small_lm"
"""The `model_type` of models in our own form, and the key of their record in config.json."""
PREFIX = "net."
"""Of the names of weights, there as in a checkpoint."""
TOKENIZER_RECORD = "tokenizer_record.json"
MOST_EXPERTS = 2**17
"""In all layers; the largest public models have a fifth. Each is a module, and a few bytes ask for it."""

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How an address begins, also where a Path has made one slash of two."""


class Stored(Mapping[str, Tensor]):
    """The weights of a folder in float32, which holds bfloat16 and float16 exactly; each is read when it is asked for.

    Args:
        weights: of the folder.
        places: name -> name in the files; None: they have no other names.

    Raises:
        RunError: a tensor that was asked for holds a number that is not finite.
    """

    def __init__(self, weights: Weights, places: Mapping[str, str] | None = None) -> None:
        self._weights, self._places = weights, {name: name for name in weights} if places is None else places

    @property
    def headers(self) -> dict[str, Header]:
        """Name -> what the file says of the tensor."""
        return {name: self._weights.headers[place] for name, place in self._places.items()}

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        tensor = self._weights[place].to(torch.float32, copy=True)  # without a copy it would hold on to the whole file
        if not torch.isfinite(tensor).all():
            raise RunError(f"{shown(str(self._weights.headers[place].file))}: {shown(place)} holds numbers not finite")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def refuse_remote(path: Path) -> None:
    """Raise RequestError for an address: what lies there may be another file tomorrow, and nobody has compared it."""
    if REMOTE.match(str(path)):
        raise RequestError(
            f"checkpoint: {shown(str(path))} is an address; allowed: a file or folder of this machine, fetched before"
        )


def is_release(path: Path) -> bool:
    """Whether a folder is that of a model, not of a run."""
    return (path / CONFIG).exists() and not (path / "checkpoints").exists()


def content(path: Path) -> dict[str, Any]:
    """What `checkpoint.read` gives of a checkpoint file, without a training state; weights are not read yet.

    Raises:
        RequestError: the folder is not of our own form, or something in it is no plain data.
        RunError: a file is missing, or is not the one that was released.
    """
    folder = folder_at(path)
    listed = verified(folder) if (folder / SUMS).exists() else set()
    record = _record(read_config(folder), shown(str(path)))
    if not listed:
        raise RunError(f"{shown(str(path))}: {SUMS} is missing, so that nothing in it can be checked")
    weights, tokenizer = read_weights(folder), {**record["tokenizer"], "record": read_json(folder / TOKENIZER_RECORD)}
    unlisted = {TOKENIZER_RECORD, *(header.file.name for header in weights.headers.values())} - listed
    if unlisted:
        raise RunError(f"{shown(str(folder / min(unlisted)))} is not in {SUMS}; it did not come with the others")
    with of_a_record(f"{shown(str(path))}: its record"):
        config = yaml.safe_dump(record.get("config") or {})
    return {
        "state_dict": Stored(weights),
        OWN: {**record, "tokenizer": tokenizer, "config": config},
        "epoch": 0,
        "global_step": record.get("step"),
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
    }


def _record(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    record, kind = config.get(OWN), shown(str(config.get("model_type")))
    whole = isinstance(record, Mapping) and isinstance(record.get("tokenizer"), Mapping)
    if kind != OWN or not whole:
        what = "of our own form, without its tokenizer" if kind == OWN else f"of a public model (model_type {kind})"
        raise RequestError(f"{where}: a folder {what}; lit-small-lm import makes a run of it")
    return record


def verified(folder: Path) -> set[str]:
    """The names in a folder's list of digests. Raises RunError for a file that is missing or not as listed."""
    digests = read_sums(within(folder, SUMS))
    for name in digests:
        if (folder / name).exists():
            within(folder, name)
    refuse_changed(folder, digests, digests)
    return set(digests)


# ------------------------------------------------------------------------------------------- before memory is taken
def empty(spec: BackboneSpec, dims: Dims, rows: int) -> Backbone:
    """The network without storage."""
    with torch.device("meta"):
        return Backbone(spec, dims, rows)


def refuse_experts(spec: BackboneSpec, dims: Dims) -> None:
    """Raise RequestError for more experts than any file will hold."""
    layers = spec.layers(dims.n_layers)
    count = sum(kind.ffn.n_experts for kind in layers if isinstance(kind.ffn, MoE))
    if count > MOST_EXPERTS:
        raise RequestError(f"{count:,} experts in {len(layers):,} layers; allowed: at most {MOST_EXPERTS:,} in all")


def refuse_misfit(spec: BackboneSpec, dims: Dims, rows: int, state: Mapping[str, Tensor], where: str) -> None:
    """Raise RunError, beginning with `where`, unless the weights of a file are those of the network in its record."""
    headers = state.headers if isinstance(state, Stored) else state
    found = {name: tuple(header.shape) for name, header in headers.items() if name.startswith(PREFIX)}
    if dims.n_layers > len(found):
        raise RunError(f"{where}: its record says {dims.n_layers:,} layers, but it has {len(found):,} weights")
    refuse_experts(spec, dims)
    wanted = {PREFIX + name: tuple(tensor.shape) for name, tensor in empty(spec, dims, rows).state_dict().items()}
    for name in sorted(wanted.keys() | found):
        if wanted.get(name) != found.get(name):
            have, need = (f"shape {shapes[name]}" if name in shapes else "none" for shapes in (found, wanted))
            raise RunError(f"{where}: tensor {shown(name)}: {have} in the file, {need} by its record")
