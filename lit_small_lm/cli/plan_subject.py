"""What `plan` is asked about: a configuration, a run or checkpoint of ours, or a public model's config.json."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.checkpoint import read, record_of
from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.lit import PRECISIONS, roots
from lit_small_lm.cli.plan_workload import vocabulary, workload_of
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.run_options import with_packaged_files
from lit_small_lm.cli.schema import Option, class_named, options_of
from lit_small_lm.cli.yaml_tree import BadYAML
from lit_small_lm.errors import RequestError, of_a_record, path_of, shown
from lit_small_lm.folder import CONFIG, read_json
from lit_small_lm.hf.importing import model_of
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.devices import Device
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.plan import Planned
from lit_small_lm.plugin import Dims, Shape, Spec, Tokenizer
from lit_small_lm.shapes import fixed, mismatch
from lit_small_lm.training.lit import AutoregressiveLM, LanguageModule

SEQ_LEN = 2048
"""Positions of a row for a public model that was not given any, where it has as many."""
TIE = "tie_word_embeddings"
PARTS: dict[type[Spec], str] = {BackboneSpec: "--model.backbone", Shape: "--model.shape"}
"""What a YAML file may hold by itself -> where it goes."""


@dataclass(frozen=True)
class Overrides:
    """What was asked for beside the configuration."""

    vocab_size: int | None = None
    head: str | None = None
    """tied or untied, whatever the configuration says."""
    device: Device | None = None


def subject_at(place: str | None, argv: Sequence[str], asked: Overrides) -> Planned:
    """What is planned.

    Args:
        place: a YAML file, a run folder, a checkpoint, a config.json or a folder that holds one; None: `argv` says all.
        argv: options of `fit`.
        asked: what goes over all that.

    Raises:
        RequestError: nothing can be planned there, or something in it is wrong.
        RunError: a checkpoint is damaged.
    """
    if place is None:
        return _of_configuration("the options given", argv, "", asked)
    path, where = path_of(place), shown(place)
    if path.is_dir() and (path / "config.yaml").exists():
        return _of_configuration(f"run {where}", argv, _text(path / "config.yaml"), asked, _run_vocabulary(path))
    if path.is_dir():
        if not (path / CONFIG).exists():
            raise RequestError(f"{where} holds neither config.yaml (a run) nor {CONFIG} (a public model)")
        return _of_public(path / CONFIG, argv, asked)
    if path.suffix == ".json":
        if not path.exists():
            raise RequestError(f"{where} does not exist (looked for {shown(str(path.absolute()))})")
        return _of_public(path, argv, asked)
    if path.suffix == ".ckpt":
        record = record_of(read(path))
        known = (record["specials"]["vocab_size"], "the checkpoint's")
        return _of_configuration(f"checkpoint {where}", argv, record["config"], asked, known)
    return _of_configuration(where, with_packaged_files([*_named(place), *argv]), "", asked)


def _named(place: str) -> list[str]:
    """A YAML file as options of `fit`; a family or a shape by itself is planned in the plainest model."""
    _, file = with_packaged_files(["-c", place])
    try:
        tree = yaml_tree.data(yaml_tree.read_file(Path(file)))
    except BadYAML:
        return ["-c", place]  # whoever reads it next says what is wrong, and on which line
    name = tree.get("class_path") if isinstance(tree, Mapping) else None
    for kind, option in PARTS.items():
        if isinstance(name, str) and class_named(kind, name):
            return ["--model", AutoregressiveLM.__name__, option, place]
    return ["-c", place]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{shown(str(file))} is not UTF-8") from None


def _run_vocabulary(folder: Path) -> tuple[int, str] | None:
    """The vocabulary of the tokenizer that a run keeps beside its configuration, if it got so far."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    try:
        tree = yaml_tree.data(yaml_tree.read_file(folder / "config.yaml"))
    except BadYAML:
        return None  # whoever reads it next says what is wrong, and on which line
    with of_a_record(f"{shown(str(folder))}: its tokenizer"):
        tokenizer = Tokenizer.from_dict(tree["data"]["tokenizer"])
        return tokenizer.restore(read_json(file)).specials.vocab_size, "the run's tokenizer"


# ---------------------------------------------------------------------------------------------------- configurations
def _of_configuration(
    source: str, argv: Sequence[str], base: str, asked: Overrides, known: tuple[int, str] | None = None
) -> Planned:
    request = check_request(argv, _options(), base=base, beside=OWN)
    cls, parts = _parts(request.tree["model"])
    data = request.tree.get("data", {})
    if asked.vocab_size is not None:
        known = (asked.vocab_size, "--vocab_size")
    vocab_size, said = known or vocabulary(data)
    backbone = _with_head(parts.get("backbone", BackboneSpec()), asked)
    shape = parts.get("shape")
    if not isinstance(shape, Shape):
        raise RequestError(f"model: {cls.__name__} has no shape of its own to plan with; allowed: one with model.shape")
    dims = shape.resolve(lambda dims: size(Outline(backbone, dims, vocab_size)))
    outline = Outline(backbone, dims, vocab_size)
    found = mismatch(shape, dims, size(outline))
    return Planned(
        outline=outline,
        workload=workload_of(request.tree, asked.device, _objective(cls, {**parts, "backbone": backbone}, dims)),
        source=source,
        vocabulary=said,
        notes=(*request.notices, *([str(found)] if found else [])),
    )


OWN = (
    "device",
    "json",
    "vocab_size",
    "head",
    "utilisation",
    "price",
    "unique_tokens",
    "budget",
    "target_loss",
    "explain",
)
"""The command's own options, for suggestions."""


def _options() -> dict[str, Option]:
    """The options of `fit`, and pure bfloat16, which can be planned for only."""
    found = roots()
    bounds = {**found["trainer"].bounds, "precision": {"choices": (*PRECISIONS, "bf16-true")}}
    return {**found, "trainer": replace(found["trainer"], bounds=bounds)}


def _parts(tree: Mapping[str, Any]) -> tuple[type[LanguageModule], dict[str, Any]]:
    """The module's class and its arguments, Specs built."""
    cls = class_named(LanguageModule, tree["class_path"])
    options = options_of(cls)
    return cls, {
        name: options[name].kind.from_dict(value) if options[name].form == "slot" and value is not None else value
        for name, value in tree["init_args"].items()
    }


def _objective(cls: type[LanguageModule], parts: Mapping[str, Any], dims: Dims) -> Any:
    """What the module asks of its network; a module of one layer is built to find out."""
    shallow = fixed(replace(dims, n_layers=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of layers that one layer does not reach
        return cls(**{**parts, "shape": shallow}).objective


def _with_head(backbone: BackboneSpec, asked: Overrides) -> BackboneSpec:
    return backbone if asked.head is None else replace(backbone, head=asked.head)


# ----------------------------------------------------------------------------------------------------- public models
def _of_public(file: Path, argv: Sequence[str], asked: Overrides) -> Planned:
    config = read_json(file)
    model = model_of(config)
    options = {name: option for name, option in _options().items() if name != "model"}
    request = check_request(argv, options, beside=OWN)
    tree = {**request.tree, "data": dict(request.tree.get("data", {}))}
    tree["data"].setdefault("seq_len", min(model.max_length or SEQ_LEN, SEQ_LEN))
    vocab_size = asked.vocab_size or model.vocab_size
    said = "--vocab_size" if asked.vocab_size else f"{CONFIG}, padding rows included"
    objective = MaskedDiffusion() if model.bidirectional else None
    return Planned(
        outline=Outline(_with_head(model.backbone, asked), model.shape.resolve(), vocab_size),
        workload=workload_of(tree, asked.device, objective),
        source=f"{config['model_type']}, {shown(str(file))}",
        vocabulary=said,
        extras=model.extras,
        head_is_known=TIE in config or asked.head is not None,
        notes=tuple(request.notices),
    )
