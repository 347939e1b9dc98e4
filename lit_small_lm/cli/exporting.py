"""`lit-small-lm export RUN OUT --to hf`: a trained model becomes a folder that other programs load."""

import dataclasses
import json
import sys
from pathlib import Path

from lit_small_lm.cli.new_folder import refuse_used, whole_folder
from lit_small_lm.cli.options import Options
from lit_small_lm.errors import not_known

TEXT = """Write a model as config.json, safetensors and tokenizer. Where transformers ships a class that expresses it,
that class loads the folder without this package; where none does, import lit_small_lm.hf registers a wrapper, and what
is missing is named. What was written is read back, and its logits are compared, before OUT appears."""
FORMATS = ("hf",)
DTYPES = ("float32", "bfloat16")


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory, or one checkpoint file")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or an empty one")
    parser.add_argument("--to", metavar="FORMAT", required=True, help="hf: what Hugging Face's transformers load")
    parser.add_argument("--dtype", metavar="TYPE", default="float32", help=f"{' or '.join(DTYPES)} (default float32)")
    parser.add_argument(
        "--max_shard_size", metavar="SIZE", default="5GB", help="of a file of weights at most (default 5GB)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_plugins()
    return parser


def run(command: str, argv: list[str]) -> int:
    """Export as asked; prints the largest difference of a logit, or one JSON object with `--json`."""
    args = parser(command).parse_args(argv)
    for option, value, known in (("--to", args.to, FORMATS), ("--dtype", args.dtype, DTYPES)):
        if value not in known:
            raise not_known(option, value, known)
    refuse_used(args.out)
    from lit_small_lm.checkpoint import load
    from lit_small_lm.hf.exporting import export
    from lit_small_lm.hf.writing import check_shard_size

    check_shard_size(args.max_shard_size)
    model = load(args.path, args.plugins)
    with whole_folder(args.out) as folder:
        done = export(model, folder, args.dtype, args.max_shard_size)
    if args.json:
        print(json.dumps({"out": str(args.out), "to": args.to, "dtype": args.dtype, **dataclasses.asdict(done)}))
        return 0
    if done.reason:
        needs = ", ".join(["import lit_small_lm.hf", *(f"plug-in {name}" for name in done.plugins)])
        print(f"note: no public class fits: {done.reason}; needs: {needs}", file=sys.stderr)
    if done.tokenizer:
        print(f"note: no tokenizer: {done.tokenizer}", file=sys.stderr)
    theirs = "not installed" if done.transformers is None else f"{done.transformers:.2g}"
    print(
        f"{args.out}: {done.architecture}, {args.dtype}; largest difference of a logit {done.difference:.2g}, with "
        f"transformers {theirs} (largest logit {done.largest:.3g})"
    )
    return 0
