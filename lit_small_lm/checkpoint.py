"""Checkpoints: the record that makes one self-describing, and `load`, which rebuilds a model from it alone.

Files are read with `weights_only=True`, after their bytes were held against their digest (see `durable`); names in a
record are looked up among the known classes and never imported.
"""

import dataclasses
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_small_lm import __version__
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.batch import Specials
from lit_small_lm.context import Context
from lit_small_lm.discovery import describe, discover
from lit_small_lm.durable import SUFFIX, DamagedError, manifest_of, save, verify
from lit_small_lm.errors import RequestError, RunError, of_a_record, shown, shown_path
from lit_small_lm.generation import Asked, pieces
from lit_small_lm.plugin import Dims, Encoder, Frame, Objective, Sampler, Shape, Spec, Tokenizer
from lit_small_lm.release import content as released
from lit_small_lm.release import is_release, refuse_misfit, refuse_remote
from lit_small_lm.samplers.fitting import refuse_unfit
from lit_small_lm.shapes import fixed
from lit_small_lm.spec import class_path, final_classes

FORMAT = 2
"""Since 2 the rows of fused projections lie in groups of heads."""
RECORD = "lit_small_lm"
NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint of a step."""
    return f"step={step:08d}.ckpt"


def step_of(path: Path) -> int | None:
    """The step a checkpoint file is named after, or None if it is not named as a checkpoint."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def checkpoints_in(run_dir: Path) -> list[Path]:
    """A run's checkpoints, highest step first."""
    files = [file for file in (run_dir / "checkpoints").glob("step=*.ckpt") if step_of(file) is not None]
    return sorted(files, key=step_of, reverse=True)


def make_record(
    *,
    backbone: BackboneSpec,
    shape: Shape,
    objective: Objective,
    tokenizer: Tokenizer,
    encoder: Encoder,
    dims: Dims | None = None,
    **others: float | str,
) -> dict[str, Any]:
    """What `load` needs, as plain data: Specs, tokenizer, plug-ins in use, and what the caller adds.

    `dims` are the widths that `shape` was resolved to; None: it depends on nothing else. They are recorded as the
    shape, beside what was asked, so that nothing is solved again, whatever becomes of family and vocabulary.
    """
    specs = {"backbone": backbone, "shape_asked": shape, "objective": objective}
    used = {type(spec) for root in (*specs.values(), tokenizer) for spec in _walk(root)}
    plugins = [dataclasses.asdict(describe(cls)) for cls in sorted(used, key=lambda cls: cls.__name__)]
    return {
        "format": FORMAT,
        "version": __version__,
        **{name: spec.to_dict() for name, spec in specs.items()},
        "shape": fixed(dims or shape.resolve()).to_dict(),
        "tokenizer": {"spec": tokenizer.to_dict(), "record": encoder.record()},
        "specials": encoder.specials._asdict(),
        "plugins": [plugin for plugin in plugins if plugin["source"] != "built-in"],
        **others,
    }


def recorded_dims(record: dict[str, Any] | None, shape: Shape) -> Dims | None:
    """The widths in a checkpoint's record, if there is one and the same shape was asked for."""
    if record is None or record.get("shape_asked", record["shape"]) != shape.to_dict():
        return None
    return Shape.from_dict(record["shape"]).resolve()


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file.

    Raises:
        RequestError: the file does not exist, or is a folder.
        DamagedError: it is not what was written, or not tensors and plain data alone (refused, nothing runs).
        RunError: a weight in it is not finite.
    """
    refuse_remote(path)
    if is_release(path):
        return released(path)
    if path.is_dir():
        raise RequestError(f"checkpoint: {shown(str(path))} is a folder; allowed: a file, such as {checkpoint_name(0)}")
    if not path.is_file():
        raise RequestError(f"checkpoint: {shown(str(path))} does not exist")
    place = shown_path(path)
    try:
        with open(path, "rb") as file:
            found = verify(path, file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except DamagedError as error:
        raise DamagedError(f"checkpoint: {place} is damaged: {error}") from error
    except pickle.UnpicklingError as error:
        raise DamagedError(f"checkpoint: {place} was refused; it is not tensors and plain data only") from error
    except OSError as error:
        raise DamagedError(f"checkpoint: {place} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what torch.load raises on damaged bytes is anything
        raise DamagedError(f"checkpoint: {place} is damaged ({type(error).__name__})") from error
    if found == "no manifest":
        why = "an earlier version wrote it, or it was copied alone; damage may go unseen"
        warnings.warn(f"checkpoint: {place} has no {manifest_of(path).name}: {why}", stacklevel=2)
    refuse_non_finite(content, f"checkpoint: {place}")
    return content


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint file and its manifest, whole or not at all.

    Raises:
        RunError: a weight is not finite, or the disk is full or refuses; what was saved before is as it was.
    """
    refuse_non_finite(content, f"checkpoint: {shown_path(path)} is not written")
    save(path, lambda stream: torch.save(content, stream))


def refuse_non_finite(content: Any, where: str) -> None:
    """Raise RunError naming the first weight of a checkpoint that is NaN or infinite."""
    for part in ("state_dict", "current_model_state"):
        state = content.get(part) if isinstance(content, dict) else None
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor) and value.is_floating_point() and not finite(value):
                raise RunError(f"{where}: weight {shown(name)} is not finite")


def finite(numbers: Tensor) -> bool:
    """Whether none is NaN or infinite; found without memory of their size."""
    return not numbers.numel() or all(bound.isfinite() for bound in numbers.aminmax())


def record_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises:
        RequestError: it has none, or a later version of the package wrote it.
        DamagedError: it is damaged.
    """
    record = checkpoint.get(RECORD) if isinstance(checkpoint, dict) else None
    if record is None:
        raise RequestError("checkpoint: it has no lit_small_lm record; it was not written by this package")
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise DamagedError("checkpoint: its record is damaged (no format number)")
    if record["format"] <= FORMAT and not {"backbone", "shape", "objective", "tokenizer", "step"} <= set(record):
        raise DamagedError("checkpoint: its record is damaged (parts of it are missing)")
    if record["format"] > FORMAT:
        raise RequestError(
            f"checkpoint: format {record['format']} of version {record['version']}; version {__version__} reads up to "
            f"format {FORMAT}"
        )
    if record["format"] < FORMAT:
        raise RequestError(
            f"checkpoint: format {record['format']}, whose weights lie in another order; version {__version__} reads "
            f"format {FORMAT}"
        )
    return record


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The backbone's state dict."""
    return {
        key.removeprefix("net."): value for key, value in checkpoint["state_dict"].items() if key.startswith("net.")
    }


def grown(
    state: Mapping[str, Tensor], rows: int, known: int | None = None, fresh: Sequence[int] = ()
) -> dict[str, Tensor]:
    """A network's state with `rows` rows in embedding and head; each new one is the mean of those that were there.

    Logits of the old ids stay what they were. A new id's is the mean of theirs, so that it adds at most one part in V
    to the softmax's sum (Jensen's inequality; Hewitt 2021, "Initializing new word embeddings for pretrained language
    models").

    Args:
        state: of the network.
        rows: how many it shall have, at least those it has.
        known: how many of its rows, the first ones, belong to tokens; None: all.
        fresh: rows it may have, but that belonged to no token; they become the mean as well.
    """
    found = dict(state)
    for name in {"embed.weight", "head.weight"} & set(state):
        table = state[name]  # (V, D)
        mean = table[:known].mean(0, keepdim=True)
        found[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
        found[name][list(fresh)] = mean
    return found


def averaged(files: Sequence[Path]) -> dict[str, Any]:
    """The record of the last of some checkpoints, and the mean of the weights of all; what they have besides numbers
    with a fraction is the last one's.

    Raises:
        RequestError: they are not of one network.
    """
    total: dict[str, Tensor] = {}
    for file in files:
        content = read(file)
        state = content["state_dict"]
        if total and {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in total.items()}:
            raise RequestError(f"checkpoint: {file} is of another network than {files[0]}")
        for name, tensor in state.items():
            fractions = tensor.is_floating_point()
            total[name] = tensor.double() + total.get(name, 0) if fractions else tensor
    mean = {
        name: (total[name] / len(files)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    return {RECORD: record_of(content), "state_dict": mean}


def newest(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The good checkpoint of the highest step, and its content; those that are passed over are warned of.

    One without a manifest is taken only where none is good that has one.

    Raises:
        RequestError: the folder holds no checkpoint.
        RunError: all of them are damaged, or a weight of the newest good one is not finite.
    """
    refuse_remote(run_dir)
    if is_release(run_dir):
        return run_dir, released(run_dir)
    files, reasons = checkpoints_in(run_dir), []
    if not files:
        place = shown_path(run_dir)
        raise RequestError(f"{place}: no checkpoint in it (checkpoints/{checkpoint_name(0)} and so on)")
    files = sorted([*files, *_only_listed(run_dir, files)], key=step_of, reverse=True)
    bare = [file for file in files if file.is_file() and not os.path.lexists(manifest_of(file.resolve()))]
    for file in sorted(files, key=bare.__contains__):
        try:
            content = _whole(file)
        except DamagedError as error:
            reasons.append(str(error))
            continue
        passed = [f"checkpoint: {shown_path(other)} has no {manifest_of(other).name}" for other in bare]
        passed = [] if file in bare else passed[: sum(step_of(other) > step_of(file) for other in bare)]
        for reason in (*reasons, *passed):
            warnings.warn(f"{reason}; passed over for {file.name}", stacklevel=2)
        return file, content
    raise RunError("\n".join(reasons))


def _only_listed(run_dir: Path, files: Sequence[Path]) -> list[Path]:
    """Checkpoints of which the manifest alone is there: taken away, or begun when the run was killed."""
    listed = [file.with_suffix("") for file in (run_dir / "checkpoints").glob(f"step=*.ckpt{SUFFIX}")]
    return [file for file in listed if file not in files and step_of(file) is not None]


def _whole(file: Path) -> dict[str, Any]:
    """The content of a checkpoint file. Raises DamagedError also where something else stands in its place."""
    if not file.is_file():
        there = "no file" if os.path.lexists(file) else "not there, only its manifest"
        found = "a link to nothing" if file.is_symlink() else there
        raise DamagedError(f"checkpoint: {shown_path(file)} is {found}")
    content = read(file)
    try:
        record_of(content)
    except DamagedError as error:
        raise DamagedError(f"{error}: {shown_path(file)}") from error
    return content


def at(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, or of the newest good one of a run folder. Raises as `newest` and `read` do."""
    return newest(path)[1] if path.is_dir() else read(path)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A trained model, ready to score and to generate."""

    net: Backbone
    objective: Objective
    encoder: Encoder
    record: dict[str, Any]
    """What the checkpoint says of itself: Specs, counters, plug-ins."""

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, T, V); every row is one document, begun by `encoder.specials.start`."""
        return self.net(tokens, Context(self.objective.view(tokens)))

    def frames(
        self, prompt: str, max_new_tokens: int, sampler: Sampler | None = None, seed: int = 0, suffix: str = ""
    ) -> Iterator[Frame]:
        """States of `prompt` and its continuation, or of what is filled in before `suffix`, one an evaluation.

        Raises:
            RequestError: the text exceeds the positions the model has, the sampler does not go with the model's
                objective, or cannot do what is asked.
        """
        sampler = sampler or self.objective.sampler()
        refuse_unfit(sampler, self.objective)
        asked = Asked.of(self.encoder, prompt, max_new_tokens, suffix, self.net.limit())
        row = asked.row.to(self.net.embed.weight.device)
        return sampler.frames(self.net, row, asked.new, seed, self.encoder.specials, self.objective.decoding())

    def generate(
        self, prompt: str, max_new_tokens: int, sampler: Sampler | None = None, seed: int = 0, suffix: str = ""
    ) -> Iterator[str]:
        """Yield pieces of what follows `prompt` as they become final (see `generation`); ends at the document's end.

        With a `suffix` that many places are filled between the two, and the text ends with it.

        Raises:
            RequestError: as `frames` does.
        """
        frames = self.frames(prompt, max_new_tokens, sampler, seed, suffix)
        return pieces(frames, 1 + len(self.encoder.encode([prompt])[0]), self.encoder)


def load(path: str | Path, plugins: Sequence[str | Path] = (), device: str = "cpu") -> LanguageModel:
    """Rebuild backbone, objective and tokenizer from a checkpoint file, a run's newest good one, or a released model.

    Args:
        path: a `.ckpt` file, a run folder, or the folder of a released model.
        plugins: files or folders of your own plug-ins that the model was built with.
        device: where the network goes.

    Raises:
        RequestError: nothing to load there, or a plug-in it needs is not known.
        RunError: the file is damaged.
    """
    discover(plugins)
    path = Path(path)
    checkpoint = at(path)
    record = record_of(checkpoint)
    where = f"checkpoint: {shown_path(path)}"
    with of_a_record(f"{where}: its record"):
        need_plugins(record)
        encoder = encoder_of(record)
        dims = Shape.from_dict(record["shape"]).resolve()
        spec, rows = BackboneSpec.from_dict(record["backbone"]), encoder.specials.vocab_size
        refuse_misfit(spec, dims, rows, checkpoint["state_dict"], where)
        net = Backbone(spec, dims, rows)
        net.load_state_dict(weights_of(checkpoint))
        objective = Objective.from_dict(record["objective"])
    return LanguageModel(net.eval().to(device), objective, encoder, record)


def encoder_of(record: dict[str, Any]) -> Encoder:
    """The tokenizer a checkpoint was trained with. Raises RequestError if its special ids are not those recorded."""
    encoder = Tokenizer.from_dict(record["tokenizer"]["spec"]).restore(record["tokenizer"]["record"])
    if encoder.specials != Specials(**record["specials"]):
        raise RequestError(f"checkpoint: specials {record['specials']}; its tokenizer has {encoder.specials._asdict()}")
    return encoder


def need_plugins(record: dict[str, Any]) -> None:
    """Raise RequestError naming a plug-in that a checkpoint was built with and that is not known."""
    paths = {class_path(cls) for cls in final_classes(Spec)}
    for plugin in record["plugins"]:
        if plugin["class_path"] not in paths:
            raise RequestError(
                f"checkpoint: it needs plug-in {plugin['name']} ({plugin['source']}); name it with --plugins"
            )


def _walk(spec: Spec) -> Iterator[Spec]:
    yield spec
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        members = value.values() if isinstance(value, dict) else [value]
        for member in members:
            if isinstance(member, Spec):
                yield from _walk(member)
