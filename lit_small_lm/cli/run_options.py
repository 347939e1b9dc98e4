"""Options of a run that are no part of its configuration: where it lives, and what it starts from."""

import argparse
import dataclasses
import importlib.resources
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_small_lm.checkpoint import at, checkpoints_in, need_plugins, newest, read, record_of
from lit_small_lm.cli.options import Options, place
from lit_small_lm.discovery import ModuleName
from lit_small_lm.errors import RequestError, of_a_record, shown
from lit_small_lm.ranks import process_number, refuse_odd_numbers
from lit_small_lm.training import run_lock

TEXT = """options of the run:
  --run_dir DIR          where everything of the run goes (default: a new directory below runs/)
  --resume               go on in --run_dir from its newest good checkpoint, with its configuration
  --branch_from FILE     start a new run from a checkpoint's whole state (another decay, more steps)
  --init_from FILE       start a new run from a checkpoint's weights and tokenizer only (the averaged weights if it has
                         an average); FILE may also be a run folder
  --plugins PATH         load your own plug-ins from a file or folder; may be repeated
  --allow_import MODULE  a Python module whose classes the configuration may name; its code runs; may be repeated
"""
STATE = {"optimizer_states": "optimizer state", "loops": "position in the data"}
"""What a checkpoint holds beside weights that training goes on from."""


def with_packaged_files(argv: list[str]) -> list[str]:
    """argv, where a YAML file that is not here but comes with the package (configs/demo.yaml) is found there."""
    if importlib.util.find_spec("lit_small_lm.configs") is None:
        return argv
    folder, found = importlib.resources.files("lit_small_lm.configs"), []
    for before, text in zip(["", *argv], argv, strict=False):
        option, equals, name = text.rpartition("=")
        key = option or before
        names_a_file = key == "--data" or key.startswith(("-c", "--config", "--model"))
        packaged = folder / name.removeprefix("configs/")
        take_it = names_a_file and name.endswith(".yaml") and not Path(name).exists() and packaged.is_file()
        found.append(f"{option}{equals}{packaged}" if take_it else text)
    return found


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a command starts from."""

    checkpoint: Path | None = None
    """The state to restore, or None for a fresh start."""
    step: int = 0
    """Its step."""
    config: str | None = None
    """The configuration it was trained with, as YAML: the base of the new one."""
    record: dict[str, Any] | None = None
    """What the checkpoint says of itself."""
    notice: str = ""
    """What the user should know of it."""
    left_out: tuple[tuple[int, int], ...] = ()
    """Stretches of training rows that a run which went back leaves out; see `TokenData.left_out`."""
    rewound: int = 0
    """How often it went back."""

    @property
    def base(self) -> str:
        """What the request is laid over, as YAML: the configuration of the run that it goes on with; where it starts
        from weights alone, the model that they are of."""
        if self.config is not None or self.record is None:
            return self.config or ""
        model = (yaml.safe_load(self.record.get("config") or "") or {}).get("model")
        return "" if model is None else yaml.safe_dump({"model": model})

    def encoder(self, model: Any) -> dict[str, object] | None:
        """The record of the tokenizer that goes with its weights in a model that goes on from them."""
        with of_a_record("checkpoint: its record"):
            return None if self.record is None else model.tokenizer_of(self.record).record()


def take(command: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split argv into the run's options and the configuration's."""
    return parser(command).parse_known_args(argv)


def parser(command: str) -> Options:
    """The run's options; those of the configuration stand beside them."""
    parser = Options(prog=f"lit-small-lm {command}", add_help=False)
    parser.add_argument("--run_dir", type=place)
    parser.add_plugins()
    if command == "fit":
        parser.add_argument("--resume", action="store_true")
        parser.add_argument("--branch_from", type=place)
        parser.add_argument("--init_from", type=place)
    else:
        parser.add_argument("--ckpt_path", type=place)
    return parser


def start_of(command: str, options: argparse.Namespace) -> Start:
    """Where a command starts from; which process this is has to be known before."""
    refuse_odd_numbers()
    return fit_start(options) if command == "fit" else evaluation_start(options)


def refuse_file(key: str, folder: Path) -> Path:
    """The part of `folder` that exists. Raises RequestError if that is no directory."""
    try:
        parent = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise RequestError(f"{key}: {shown(str(folder))}: {error.strerror}") from None
    if folder.is_symlink() and not folder.exists():
        raise RequestError(f"{key}: {shown(str(folder))} is a link to nothing; allowed: a directory, or a new path")
    if not parent.is_dir():
        place = shown(str(parent))
        raise RequestError(f"{key}: {shown(str(folder))}: {place} is a file; allowed: a directory, or a new path")
    return parent


def _refuse_unusable(folder: Path) -> None:
    """Raise RequestError if nothing can be written below `folder`."""
    parent = refuse_file("--run_dir", folder)
    if not os.access(parent, os.W_OK):
        raise RequestError(f"--run_dir: {shown(str(folder))}: {parent} cannot be written to")


def fit_start(options: argparse.Namespace) -> Start:
    """What a `fit` starts from.

    Raises:
        RequestError: options that exclude each other, a directory that holds a run, or a checkpoint that is not there.
    """
    folder = options.run_dir
    given = [name for name in ("resume", "branch_from", "init_from") if getattr(options, name)]
    if len(given) > 1:
        raise RequestError(f"--{given[0]} and --{given[1]} exclude each other: give one")
    if folder is not None:
        _refuse_unusable(folder)
    if options.resume:
        if folder is None:
            raise RequestError("--resume: needs --run_dir DIR, the directory of the run to go on with")
        if folder.is_dir() and process_number() == 0:
            run_lock.hold(folder)  # before its newest checkpoint is chosen
        return _whole(*newest(folder))
    if folder is not None and checkpoints_in(folder):
        raise RequestError(
            f"--run_dir: {shown(str(folder))} holds checkpoints; go on with: "
            + resume_command(folder, options.plugins).replace("\n", "\\n")
        )
    ours = folder is None or not folder.exists() or (folder / "environment.json").exists()
    if not ours and any(file.name != run_lock.NAME for file in folder.iterdir()):
        raise RequestError(
            f"--run_dir: {shown(str(folder))} holds other files; allowed: a new directory, or an empty one"
        )
    if options.branch_from:
        return _whole(options.branch_from, read(options.branch_from))
    if options.init_from:
        content = at(options.init_from)
        averaged = "--init_from: the checkpoint's averaged weights are taken" if "averaging_state" in content else ""
        return Start(record=record_of(content), notice=averaged)
    return Start()


def evaluation_start(options: argparse.Namespace) -> Start:
    """The checkpoint that `validate` and `test` score, and the configuration it was trained with."""
    if options.ckpt_path:
        return start_from(options.ckpt_path, read(options.ckpt_path))
    if options.run_dir is None:
        raise RequestError("--run_dir: missing; give the run's directory, or --ckpt_path FILE")
    return start_from(*newest(options.run_dir))


def resume_command(run_dir: Path, plugins: Sequence[str]) -> str:
    """What to type to go on with a run."""
    return f"{script('lit-small-lm')} fit --run_dir {shlex.quote(str(run_dir))} --resume{with_plugins(plugins)}"


def with_plugins(plugins: Sequence[str]) -> str:
    """The options that load the user's plug-ins again, to be appended to a command."""
    options = ((("--allow_import" if isinstance(path, ModuleName) else "--plugins"), path) for path in plugins)
    return "".join(f" {option} {shlex.quote(str(path))}" for option, path in options)


def script(name: str) -> str:
    """How to call an installed script: by name if it is on the PATH, else where it lies beside this Python."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) or not beside.exists():
        return name
    inside = beside.is_relative_to(Path.cwd())
    return shlex.quote(str(beside.relative_to(Path.cwd()) if inside else beside))


def changes(before: str, after: str) -> dict[str, tuple[object, object]]:
    """Key -> (value before, value now) of what differs between two configurations.

    An option that there was not when the first was written is no change.
    """
    old, new = flat(yaml.safe_load(before)), flat(yaml.safe_load(after))
    keys = [key for key in old if old[key] != new.get(key)]
    return {key: (old.get(key), new.get(key)) for key in keys}


def flat(value: object, path: str = "") -> dict[str, object]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if isinstance(value, dict) and value:
        items = (flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items())
        return {key: leaf for part in items for key, leaf in part.items()}
    return {path: value}


def _whole(checkpoint: Path, content: dict) -> Start:
    """The start from a checkpoint that training can go on from."""
    missing = [words for key, words in STATE.items() if key not in content]
    if missing:
        place = shown(str(checkpoint))
        raise RequestError(
            f"checkpoint: {place} holds no {' and no '.join(missing)}; --init_from takes its weights only"
        )
    return start_from(checkpoint, content)


def start_from(checkpoint: Path, content: dict, **more: Any) -> Start:
    """The start from a checkpoint and what is in it."""
    record = record_of(content)
    with of_a_record(f"checkpoint: {shown(str(checkpoint))}: its record"):
        need_plugins(record)
        return Start(checkpoint, record["step"], record["config"], record, **more)
