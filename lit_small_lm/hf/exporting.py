"""From a trained model to a folder in the public form, read back and compared before it counts as written.

Where a class that transformers ships expresses the model, its names and layout are used, and this package is not needed
to load it. Where none does, or a release was asked for, config.json holds the record of a checkpoint (plain data,
classes by name) and the weights keep our names: `checkpoint.load` takes the folder, and the wrapper that
`import lit_small_lm.hf` registers runs our own forward pass on it. A list of SHA-256 digests comes last.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from lit_small_lm.backbone import Backbone
from lit_small_lm.checkpoint import FORMAT, LanguageModel, encoder_of, read, record_of
from lit_small_lm.context import Context
from lit_small_lm.digests import write_sums
from lit_small_lm.errors import RunError
from lit_small_lm.hf import writing
from lit_small_lm.hf.folding import folded
from lit_small_lm.hf.importing import LENGTH, read_folder
from lit_small_lm.hf.names import to_theirs
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.registry import fitting
from lit_small_lm.hf.run_folder import random_ids
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.release import OWN, PREFIX, TOKENIZER_RECORD
from lit_small_lm.shapes import fixed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = 1e-4
"""Of the largest logit: what float32 may lose when a factor moves into a gain, or sums are taken in another order."""
ARCHITECTURE = "LitSmallLMForCausalLM"
LONGEST = 4096
"""Characters that a path may have."""
To = Literal["hf", "release"]
KEPT = ("version", "shape_asked", "step", "tokens", "seconds", "accumulate", "specials", "imported")
"""What the config.json of our own form takes over from the record of a checkpoint, beside the Specs."""


@dataclass(frozen=True)
class Outgoing:
    """How a model is written."""

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    """By the names of the files."""
    reason: str = ""
    """What of the model no public class has; empty where one fits."""


@dataclass(frozen=True)
class Exported:
    """What came of it."""

    architecture: str
    reason: str
    """What of the model no public class has; empty where one fits."""
    plugins: list[str]
    """Plug-ins of the user's own that have to be known wherever the wrapper loads it."""
    files: list[str]
    """The files of the weights."""
    tokenizer: str
    """Why there is no tokenizer, or empty."""
    difference: float
    """Largest difference of a logit between the model and what is read back."""
    transformers: float | None
    """The same between what is read back by us and by transformers; None: it is not installed."""
    largest: float
    """The largest logit compared."""


def export(
    model: LanguageModel,
    folder: Path,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    to: To = "hf",
    config: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model into an empty folder, and compare logits on random ids.

    Args:
        model: as `load` gives it.
        folder: exists, and is empty.
        dtype: "float32" or "bfloat16", of the weights that are written.
        max_shard_size: of a file of weights, such as "5GB".
        to: "hf": a public class's form, or ours where there is none; "release": ours.
        config: the configuration that trains such a model; kept in our own form.

    Raises:
        RunError: what was written gives other logits.
    """
    form = form_for(model, config) if to == "hf" else _own(model, "", config)
    settings, specials, length = dict(form.config), model.encoder.specials, trained_length(model)
    if length and LENGTH in settings:
        settings[LENGTH] = length
    writing.write_config(folder, settings, DTYPES[dtype], specials)
    files = writing.write_weights(folder, form.tensors, DTYPES[dtype], max_shard_size)
    lacking = writing.write_tokenizer(folder, model.encoder, length)
    if OWN in settings:
        writing.write_json(folder / TOKENIZER_RECORD, model.encoder.record())
    write_sums(folder, (file.name for file in folder.iterdir()))
    difference, largest, theirs = verified(model, folder, form, DTYPES[dtype], to)
    plugins = _own_plugins(model) if OWN in settings else []
    return Exported(settings["architectures"][0], form.reason, plugins, files, lacking, difference, theirs, largest)


def _own_plugins(model: LanguageModel) -> list[str]:
    found = [(plugin["name"], _without_folder(plugin["source"])) for plugin in model.record["plugins"]]
    return [f"{name} ({source})" for name, source in found if source != "plugin"]


def form_for(model: LanguageModel, config: Mapping[str, Any] | None = None) -> Outgoing:
    """The public class's form, or ours where there is none."""
    try:
        return _public(model)
    except Unfit as error:
        return _own(model, str(error), config)


def _public(model: LanguageModel) -> Outgoing:
    if type(model.objective) is not NextToken:
        raise Unfit(f"objective {type(model.objective).__name__}: public classes predict the next token")
    dims, vocab_size = model.net.dims, model.encoder.specials.vocab_size
    backbone, state = folded(model.net.spec, dims, model.net.state_dict())
    family, config = fitting(backbone, fixed(dims), vocab_size)
    entries = family.names(Model(backbone, fixed(dims), vocab_size))  # our widths say how our weights are joined
    return Outgoing(config, to_theirs(entries, state))


def _own(model: LanguageModel, reason: str, config: Mapping[str, Any] | None) -> Outgoing:
    dims, record = model.net.dims, model.record
    plugins = [{**plugin, "source": _without_folder(plugin["source"])} for plugin in record["plugins"]]
    kept = {
        "format": FORMAT,
        **{name: record[name] for name in KEPT if name in record},
        "backbone": without_folders(model.net.spec.to_dict()),
        "shape": fixed(dims).to_dict(),
        "objective": without_folders(model.objective.to_dict()),
        "likelihood": model.objective.bound,
        "tokenizer": {"spec": without_folders(record["tokenizer"]["spec"])},
        "plugins": plugins,
        "corpus": None,
        "config": without_folders(config or {}),
    }
    config = {
        "model_type": OWN,
        "architectures": [ARCHITECTURE],
        "vocab_size": model.encoder.specials.vocab_size,
        "hidden_size": dims.dim,
        "num_hidden_layers": dims.n_layers,
        "num_attention_heads": dims.n_heads,
        LENGTH: None,
        "tie_word_embeddings": False,  # transformers has nothing to tie: our own forward pass shares the table
        OWN: kept,
    }
    return Outgoing(config, {PREFIX + name: tensor for name, tensor in model.net.state_dict().items()}, reason)


def without_folders(value: Any) -> Any:
    """Plain data with the last part alone of every path of this machine that stands in it."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    place = isinstance(value, str) and "/" in value and len(value) < LONGEST
    return Path(value).name if place and (value[0] in "/~" or Path(value).exists()) else value


def _without_folder(source: str) -> str:
    """`file /home/me/scheme.py` -> `file scheme.py`: nothing of this machine is published."""
    kind, _, path = source.partition(" ")
    return f"file {Path(path).name}" if kind == "file" else source


def trained_length(model: LanguageModel) -> int | None:
    """The positions that a model was trained on, if its record says so."""
    imported = model.record.get("imported")
    if imported:
        return imported["max_length"]
    config = yaml.safe_load(model.record.get("config") or "") or {}
    return config.get("data", {}).get("seq_len")


@torch.no_grad()
def verified(
    model: LanguageModel, folder: Path, form: Outgoing, dtype: torch.dtype, to: To = "hf"
) -> tuple[float, float, float | None]:
    """What is written, read back: its difference to the model, and the largest logit; the difference of transformers,
    which has no part in a release.

    Raises:
        RunError: a weight was not stored as it is rounded to `dtype`, logits differ by more than rounding, or the
            tokenizer is another one.
    """
    found = read_folder(folder)
    for name, tensor in to_theirs(found.form.entries, found.state).items():
        if not torch.equal(tensor, form.tensors[name].to(dtype).float()):
            raise RunError(f"export: tensor {name} is not read back as it was written")
    if OWN in form.config and encoder_of(record_of(read(folder))).record() != model.encoder.record():
        raise RunError("export: the tokenizer is not read back as it was written")
    net = found.network()
    ids = random_ids(model.encoder.specials.vocab_size, net.limit())
    wanted, ours = model.logits(ids), logits_of(net, ids, model)
    largest = wanted.abs().max().item()
    difference = _compared(wanted, ours, largest if dtype == torch.float32 else None, "what was written")
    if to == "release" or importlib.util.find_spec("transformers") is None:
        return difference, largest, None
    theirs = importlib.import_module("lit_small_lm.hf.model").public_logits(folder, ids)
    return difference, largest, _compared(ours, theirs, largest, "transformers")


def logits_of(net: Backbone, ids: Tensor, model: LanguageModel) -> Tensor:
    """Logits (B, T, V) of another network than the model's own."""
    return net(ids, Context(model.objective.view(ids)))


def _compared(wanted: Tensor, found: Tensor, largest: float | None, who: str) -> float:
    """The largest difference; `largest` is the logit that it is held against, None: it is rounding and not held."""
    off = (wanted - found).abs().max().item()
    if off != off or (largest is not None and off > TOLERANCE * max(largest, 1.0)):
        raise RunError(f"export: logits of {who} differ by {off:.3g} (largest logit {largest}); nothing was kept")
    return off
