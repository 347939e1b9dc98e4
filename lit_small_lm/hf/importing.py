"""From a public folder to a network of ours: every tensor is accounted for before the first one is read.

The configuration says which tensors there have to be, and of which shapes; the headers of the files say which there
are. Weights become float32, which holds bfloat16 and float16 exactly, and float64 rounded.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_small_lm import __version__
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.checkpoint import FORMAT, need_plugins
from lit_small_lm.digests import SUMS, read_sums, refuse_changed
from lit_small_lm.errors import RequestError, RunError, of_a_record, shown
from lit_small_lm.folder import DTYPES, Weights, read_config, read_weights, within
from lit_small_lm.hf.names import Entry, to_ours, to_theirs
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.registry import family_of
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Objective, Shape
from lit_small_lm.release import OWN, PREFIX, Stored, empty, refuse_experts
from lit_small_lm.shapes import fixed

LENGTH = "max_position_embeddings"


@dataclass(frozen=True)
class Form:
    """What a config.json says of its model, and of the tensors beside it."""

    model: Model
    objective: Objective
    entries: Sequence[Entry]
    """Every tensor of the network and those of the file that it is made of."""
    heads: frozenset[str] = frozenset()
    """Names under which a head that shares the embedding's weights may stand in the file once more."""
    prefix: str = ""
    """What files of a bare model leave away."""
    derived: tuple[str, ...] = ()
    """Endings of tensors that follow from the configuration, and are passed over."""


@dataclass(frozen=True)
class Imported:
    """A public model as a network of ours."""

    form: Form
    config: Mapping[str, Any]
    """Its config.json."""
    state: dict[str, Tensor]
    """The backbone's state dict, in float32."""
    dtypes: tuple[str, ...]
    """The types that its weights had, in the words of safetensors."""

    def network(self) -> Backbone:
        """The backbone with its weights, in evaluation mode."""
        net = _empty(self.form.model)
        net.load_state_dict(self.state, assign=True)
        return net.eval()


def form_of(config: Mapping[str, Any]) -> Form:
    """The form of a public class, or of our own that `export` writes. Raises RequestError for one we do not have."""
    if config.get("model_type") == OWN:
        return _own_form(config)
    family = family_of(config)
    model = family.read(config)
    refuse_experts(model.backbone, model.shape.resolve())
    if model.extras:
        names = ", ".join(model.extras)
        raise RequestError(f"config.json: {model_type(config)}: {names}: such parameters are counted, not imported")
    if model.bidirectional:
        raise RequestError(f"config.json: {model_type(config)}: its attention looks both ways; allowed: causal models")
    untied = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, head="untied"))
    entries = family.names(model)
    heads = _theirs(family.names(untied)) - _theirs(entries)
    return Form(model, NextToken(), entries, frozenset(heads), family.prefix, tuple(family.derived))


def model_of(config: Mapping[str, Any]) -> Model:
    """The model of a config.json, also one that can only be counted. Raises RequestError as `form_of` does."""
    return _own_form(config).model if config.get("model_type") == OWN else family_of(config).read(config)


def model_type(config: Mapping[str, Any]) -> str:
    """What a config.json calls its class, safe to print."""
    return shown(str(config.get("model_type")))


def read_folder(path: Path, weights: Weights | None = None) -> Imported:
    """The model in a folder; `weights` are its tensors, None: those of its safetensors.

    Raises:
        RequestError: it is not there, is of a class or has settings that we do not have, or its tensors do not fit.
        RunError: a file is damaged, not as the folder's SHA256SUMS says, or holds a number that is not finite.
    """
    refuse_tampered(path)
    config = read_config(path)
    form, weights = form_of(config), read_weights(path) if weights is None else weights
    places = _places(form, weights)
    _check_headers(form, weights, places)
    state = to_ours(form.entries, Stored(weights, places))
    _compare_heads(form, weights, places, state)
    dtypes = {weights.headers[name].dtype for name in places.values()}
    return Imported(form, config, state, tuple(sorted(dtypes)))


def refuse_tampered(path: Path) -> None:
    """Raise RunError if a file of a folder is not as its list of digests says, where it has one."""
    if not (path / SUMS).exists():
        return
    digests = read_sums(within(path, SUMS))
    here = [name for name in digests if Path(name).name == name and (path / name).exists()]
    refuse_changed(path, [name for name in here if within(path, name)], digests)


def _own_form(config: Mapping[str, Any]) -> Form:
    record = config.get(OWN)
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        found = f"format {shown(str(record.get('format')))}" if isinstance(record, Mapping) else "no record"
        raise RequestError(f"config.json: {OWN}: {found}; version {__version__} reads format {FORMAT}")
    with of_a_record("config.json: its record"):
        need_plugins(record)
        dims = Shape.from_dict(record["shape"]).resolve()
        rows, length = (None if config.get(key) is None else int(config[key]) for key in ("vocab_size", LENGTH))
        model = Model(BackboneSpec.from_dict(record["backbone"]), fixed(dims), rows, max_length=length)
        refuse_experts(model.backbone, model.shape.resolve())
        entries = [Entry(name, (PREFIX + name,)) for name in _empty(model).state_dict()]
        return Form(model, Objective.from_dict(record["objective"]), entries)


def _empty(model: Model) -> Backbone:
    return empty(model.backbone, model.shape.resolve(), model.vocab_size)


def _theirs(entries: Sequence[Entry]) -> set[str]:
    return {name for entry in entries for name in entry.theirs}


def _places(form: Form, weights: Weights) -> dict[str, str]:
    """Name of the public class -> name in the files. Raises RequestError for what is missing or unknown."""
    bare = bool(form.prefix) and not any(name.startswith(form.prefix) for name in weights)
    places = {name: name.removeprefix(form.prefix) if bare else name for name in sorted(_theirs(form.entries))}
    (embedding,) = next(entry.theirs for entry in form.entries if entry.ours == "embed.weight")
    if places[embedding] not in weights:  # a file of tied weights may have kept the head's name instead
        places[embedding] = next((name for name in form.heads if name in weights), places[embedding])
    missing = [name for name in places.values() if name not in weights]
    known = {*places.values(), *form.heads}
    unknown = [name for name in weights if name not in known and not name.endswith(form.derived)]
    for names, what in ((missing, "missing"), (sorted(unknown), "not one of this class")):
        if names:
            raise RequestError(f"weights: tensor {shown(names[0])} is {what}{_more(names)}")
    return places


def _check_headers(form: Form, weights: Weights, places: Mapping[str, str]) -> None:
    state = _empty(form.model).state_dict()
    unmapped = {entry.ours for entry in form.entries} ^ set(state)
    if unmapped:
        raise RunError(f"weights: the map of names and the network differ in {min(unmapped)}{_more([*unmapped])}")
    wrong = []
    for name, tensor in to_theirs(form.entries, state).items():
        header = weights.headers[places[name]]
        if header.shape != tuple(tensor.shape):
            wrong.append(f"{shown(places[name])} has shape {header.shape}; config.json makes it {tuple(tensor.shape)}")
        elif header.dtype not in DTYPES:
            wrong.append(f"{shown(places[name])} has type {header.dtype}; allowed: {', '.join(DTYPES)}")
    if wrong:
        raise RequestError(f"weights: tensor {wrong[0]}{_more(wrong)}")


def _compare_heads(form: Form, weights: Weights, places: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    for name in form.heads & set(weights) - set(places.values()):
        if not torch.equal(weights[name].to(torch.float32), state["embed.weight"]):
            raise RequestError(f"weights: tensor {name} is not the embedding; config.json says they are tied")


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
