"""`lit-small-lm average RUN OUT`: the mean of a run's best checkpoints, as a run of its own.

LLaDA 2 (arXiv 2512.15745) ends its stages so: the mean of weights that lie near each other stands in for a decay of the
learning rate. Whether it is the better model is for `test` to say.
"""

import argparse
import importlib.metadata
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_small_lm.cli.new_folder import refuse_used, whole_folder
from lit_small_lm.cli.options import Number, Options, place
from lit_small_lm.errors import RequestError, shown

TEXT = """Average the weights of a run's best checkpoints, by the loss of the validation that was made at their step,
and write the mean as a run that test, generate, export and fit --init_from take. Where a run changed its objective
(WSDConversion), those of its last one alone are taken. A run keeps few of them: for more give it checkpoints.keep 0,
and checkpoints.every_n_steps as trainer.val_check_interval."""


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("path", type=place, metavar="RUN", help="a run directory")
    parser.add_argument("out", type=place, metavar="OUT", help="a new folder, or an empty one")
    parser.add_argument(
        "--best", type=Number(int, low=1, high=10**6), default=3, metavar="K", help="how many checkpoints (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_plugins()
    return parser


def run(command: str, argv: list[str]) -> int:
    """Average as asked; prints what was averaged, or one JSON object with `--json`."""
    args = parser(command).parse_args(argv)
    refuse_used(args.out)
    from lit_small_lm.checkpoint import averaged

    figure, losses = validated(args.path)
    files = candidates(args.path, losses)
    if len(files) < args.best:
        raise RequestError(
            f"--best: {args.best}; {shown(str(args.path))} keeps {len(files)} validated checkpoints of its last "
            "objective; allowed: up to that many (checkpoints.keep 0 keeps all)"
        )
    chosen = sorted(sorted(files, key=lambda step: (losses[step], -step))[: args.best])
    found = {"steps": chosen, "figure": figure, "values": [losses[step] for step in chosen]}
    content = averaged([files[step] for step in chosen])
    write(args, content, found)
    said = ", ".join(f"{step} ({losses[step]:.4f})" for step in chosen)
    print(json.dumps({**found, "out": str(args.out)}) if args.json else f"mean of steps {said}, {figure}: {args.out}")
    return 0


def validated(run_dir: Path) -> tuple[str, dict[int, float]]:
    """The figure that validations of a run are judged by, and its value at each step where it is a finite number.

    Raises:
        RequestError: there is no such run, or none of its validations has one.
        RunError: its metrics.jsonl is damaged.
    """
    from lit_small_lm.training.run_dir import read_metrics

    if not run_dir.is_dir():
        raise RequestError(f"RUN: {shown(str(run_dir))}; allowed: a run directory")
    lines = read_metrics(run_dir / "metrics.jsonl")
    for figure in ("val/loss_bound", "val/loss"):
        values = [(line.get("step"), line.get(figure)) for line in lines]
        losses = {step: value for step, value in values if isinstance(value, float) and math.isfinite(value)}
        if losses:
            return figure, losses
    raise RequestError(f"{shown(str(run_dir))}: its metrics.jsonl holds no validation with a finite loss")


def candidates(run_dir: Path, losses: Mapping[int, float]) -> dict[int, Path]:
    """Step -> file of the checkpoints that were validated, of the objective that the newest has."""
    from lit_small_lm.checkpoint import checkpoints_in, newest, read, record_of, step_of

    last = record_of(newest(run_dir)[1])["objective"]
    files = {step_of(file): file for file in checkpoints_in(run_dir) if step_of(file) in losses}
    return {step: file for step, file in files.items() if record_of(read(file))["objective"] == last}


def write(args: argparse.Namespace, content: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """The run folder; its checkpoint is read back before it appears."""
    from lit_small_lm import checkpoint
    from lit_small_lm.checkpoint import RECORD, checkpoint_name, load
    from lit_small_lm.training.run_dir import environment, write_json

    record = {**content[RECORD], "averaged": dict(found)}
    version = {"pytorch-lightning_version": importlib.metadata.version("lightning")}
    with whole_folder(args.out) as folder:
        file = folder / "checkpoints" / checkpoint_name(record["step"])
        checkpoint.write({**content, RECORD: record, "epoch": 0, "global_step": record["step"], **version}, file)
        load(file, args.plugins)
        (folder / "config.yaml").write_text(record["config"], encoding="utf-8")
        write_json(folder / "averaged.json", found)
        write_json(folder / "tokenizer.json", record["tokenizer"]["record"])
        write_json(folder / "environment.json", environment())
