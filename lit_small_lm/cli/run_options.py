"""Options of a run that are no part of its configuration: where it lives, and what it starts from."""

import argparse
import dataclasses
import importlib.resources
import importlib.util
from pathlib import Path

import yaml

from lit_small_lm.checkpoint import checkpoints_in, newest, read, record_of
from lit_small_lm.cli.options import Options
from lit_small_lm.errors import RequestError, shown

TEXT = """options of the run:
  --run_dir DIR          where everything of the run goes (default: a new directory below runs/)
  --resume               go on in --run_dir from its newest good checkpoint, with its configuration
  --branch_from FILE     start a new run from a checkpoint's whole state (another decay, more steps)
  --init_from FILE       start a new run from a checkpoint's weights only
  --plugins PATH         load your own plug-ins from a file or folder; may be repeated
"""


def with_packaged_files(argv: list[str]) -> list[str]:
    """argv, where a YAML file that is not here but comes with the package (configs/demo.yaml) is found there."""
    if importlib.util.find_spec("lit_small_lm.configs") is None:
        return argv
    folder, found = importlib.resources.files("lit_small_lm.configs"), []
    for text in argv:
        option, equals, name = text.rpartition("=")
        packaged = folder / name.removeprefix("configs/")
        here = not name.endswith(".yaml") or Path(name).exists() or not packaged.is_file()
        found.append(text if here else f"{option}{equals}{packaged}")
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


def take(command: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split argv into the run's options and the configuration's."""
    parser = Options(prog=f"lit-small-lm {command}", add_help=False)
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--plugins", action="append", default=[])
    if command == "fit":
        parser.add_argument("--resume", action="store_true")
        parser.add_argument("--branch_from", type=Path)
        parser.add_argument("--init_from", type=Path)
    else:
        parser.add_argument("--ckpt_path", type=Path)
    return parser.parse_known_args(argv)


def start_of(command: str, options: argparse.Namespace) -> Start:
    """Where a command starts from."""
    return fit_start(options) if command == "fit" else evaluation_start(options)


def fit_start(options: argparse.Namespace) -> Start:
    """What a `fit` starts from.

    Raises:
        RequestError: options that exclude each other, a directory that holds a run, or a checkpoint that is not there.
    """
    folder = options.run_dir
    given = [name for name in ("resume", "branch_from", "init_from") if getattr(options, name)]
    if len(given) > 1:
        raise RequestError(f"--{given[0]} and --{given[1]} exclude each other: give one")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise RequestError(f"--run_dir: {shown(str(folder))} is a file; allowed: a directory, or a new path")
    if options.resume:
        if folder is None:
            raise RequestError("--resume: needs --run_dir DIR, the directory of the run to go on with")
        checkpoint, content = newest(folder)
        return _start(checkpoint, content)
    if folder is not None and checkpoints_in(folder):
        raise RequestError(
            f"--run_dir: {folder} holds checkpoints; go on with: lit-small-lm fit --run_dir {folder} --resume"
        )
    if options.branch_from:
        return _start(options.branch_from, read(options.branch_from))
    if options.init_from:
        record_of(read(options.init_from))
    return Start()


def evaluation_start(options: argparse.Namespace) -> Start:
    """The checkpoint that `validate` and `test` score, and the configuration it was trained with."""
    if options.ckpt_path:
        return _start(options.ckpt_path, read(options.ckpt_path))
    if options.run_dir is None:
        raise RequestError("--run_dir: missing; give the run's directory, or --ckpt_path FILE")
    return _start(*newest(options.run_dir))


def changes(before: str, after: str) -> dict[str, tuple[object, object]]:
    """Key -> (value before, value now) of what differs between two configurations."""
    old, new = flat(yaml.safe_load(before)), flat(yaml.safe_load(after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: (old.get(key), new.get(key)) for key in keys}


def flat(value: object, path: str = "") -> dict[str, object]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if isinstance(value, dict) and value:
        items = (flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items())
        return {key: leaf for part in items for key, leaf in part.items()}
    return {path: value}


def _start(checkpoint: Path, content: dict) -> Start:
    record = record_of(content)
    return Start(checkpoint, record["step"], record["config"])
