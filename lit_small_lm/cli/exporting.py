"""`lit-small-lm export RUN OUT --to hf|release`: a trained model becomes a folder that other programs load.

A release is for this package: it takes it wherever it takes a run, and nothing in it could run.
"""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from lit_small_lm.cli.new_folder import refuse_used, whole_folder
from lit_small_lm.cli.options import Options, place
from lit_small_lm.errors import shown

if TYPE_CHECKING:
    from lit_small_lm.checkpoint import LanguageModel
    from lit_small_lm.hf.exporting import Exported

TEXT = """Write a model as config.json, safetensors, tokenizer and SHA256SUMS. hf: where transformers ships a class that
expresses it, that class loads the folder without this package; where none does, import lit_small_lm.hf registers a
wrapper, and what is missing is named. release: every command that takes a run takes OUT. Nothing of it is a pickle, no
path of this machine and no text stands in it. What was written is read back, and its logits are compared, before OUT
appears."""
FORMATS = ("hf", "release")
DTYPES = ("float32", "bfloat16")
WHOLE = ("lit_small_lm", "model", "optim", "schedule", "max_tokens", "ema_decay")
PARTS = {
    "data": ("tokenizer", "seq_len", "batch_size"),
    "trainer": ("precision", "max_steps", "accumulate_grad_batches", "gradient_clip_val"),
}
"""What a release keeps of the configuration of its run."""


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("path", type=place, metavar="RUN", help="a run directory, or one checkpoint file")
    parser.add_argument("out", type=place, metavar="OUT", help="a new folder, or an empty one")
    parser.add_argument(
        "--to", choices=FORMATS, required=True, help="hf: for Hugging Face's transformers; release: for this package"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument(
        "--max_shard_size", metavar="SIZE", default="5GB", help="of a file of weights at most (default 5GB)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_plugins()
    return parser


def run(command: str, argv: list[str]) -> int:
    """Export as asked; prints the largest difference of a logit, or one JSON object with `--json`."""
    args = parser(command).parse_args(argv)
    refuse_used(args.out)
    from lit_small_lm.checkpoint import load
    from lit_small_lm.hf.exporting import export
    from lit_small_lm.hf.writing import check_shard_size

    check_shard_size(args.max_shard_size)
    model = load(args.path, args.plugins)
    with whole_folder(args.out) as folder:
        done = export(model, folder, args.dtype, args.max_shard_size, args.to, configuration(model))
    if args.json:
        print(json.dumps({"out": str(args.out), "to": args.to, "dtype": args.dtype, **dataclasses.asdict(done)}))
        return 0
    _tell(done, args)
    return 0


def _tell(done: "Exported", args: Any) -> None:
    needs = [] if args.to == "release" else ["import lit_small_lm.hf"]
    needs += [f"plug-in {shown(name)}" for name in done.plugins]
    if done.reason:
        print(f"note: no public class fits: {done.reason}; needs: {', '.join(needs)}", file=sys.stderr)
    elif needs and args.to == "release":
        print(f"note: needs: {', '.join(needs)}", file=sys.stderr)
    if done.tokenizer:
        print(f"note: no tokenizer: {done.tokenizer}", file=sys.stderr)
    theirs = "not installed" if done.transformers is None else f"{done.transformers:.2g}"
    compared = "" if args.to == "release" else f", with transformers {theirs}"
    print(
        f"{args.out}: {done.architecture}, {args.dtype}; largest difference of a logit {done.difference:.2g}{compared} "
        f"(largest logit {done.largest:.3g})"
    )


def configuration(model: "LanguageModel") -> dict[str, Any]:
    """The configuration that trains such a model, without what says where its text lies and where a run goes."""
    import yaml

    from lit_small_lm.cli.resolving import resolved
    from lit_small_lm.hf.exporting import without_folders

    whole = yaml.safe_load(model.record.get("config") or "") or {}
    kept = {name: whole[name] for name in WHOLE if name in whole}
    kept |= {
        name: {key: whole[name][key] for key in keys if key in whole.get(name, {})} for name, keys in PARTS.items()
    }
    kept.setdefault("model", _model(model))
    return yaml.safe_load(resolved(yaml.safe_dump(without_folders(kept))))


def _model(model: "LanguageModel") -> dict[str, Any]:
    spec, shape = model.net.spec.to_dict(), model.record["shape"]
    return {"class_path": "AutoregressiveLM", "init_args": {"backbone": spec, "shape": shape}}
