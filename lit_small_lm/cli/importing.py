"""`lit-small-lm import HF_DIR OUT`: a public model's folder becomes a run that every other command takes."""

import argparse
import json
import sys
from typing import Any

import yaml

from lit_small_lm.cli.new_folder import refuse_used, whole_folder
from lit_small_lm.cli.options import Options, place

TEXT = """Turn a folder of a public model (config.json, safetensors, tokenizer.json if there is one) into a run folder.
Nothing in it is run, and nothing is downloaded. Every tensor of it has to be used and every one of ours filled."""
SEQ_LEN = 1024
"""Of the configuration that is written, where the model has as many positions."""


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("folder", type=place, metavar="HF_DIR", help="the folder of a public model")
    parser.add_argument("out", type=place, metavar="OUT", help="a new folder, or an empty one")
    parser.add_argument(
        "--end", metavar="TOKEN", help="the token that ends a document, or its id (default: what the folder names)"
    )
    parser.add_argument(
        "--new_rows",
        action="store_true",
        help="give the network rows for a padding and a mask token where it has none free; diffusion needs a mask",
    )
    parser.add_argument(
        "--read_pickle",
        action="store_true",
        help="take the weights from pytorch_model.bin, tensors alone: anything else in it is refused, and nothing run",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_plugins()
    return parser


def run(command: str, argv: list[str]) -> int:
    """Import as asked; prints what came of it, or one JSON object with `--json`."""
    args = parser(command).parse_args(argv)
    refuse_used(args.out)
    from lit_small_lm.folder import folder_at

    folder_at(args.folder)
    record = imported(args)
    if args.json:
        print(json.dumps(record))
        return 0
    for note in record["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"{record['model_type']}: {record['parameters']:,} parameters, {record['vocab_size']:,} rows; {args.out}")
    return 0


def imported(args: argparse.Namespace) -> dict[str, Any]:
    """Do it; returns what there is to say."""
    from lit_small_lm.checkpoint import load
    from lit_small_lm.discovery import discover
    from lit_small_lm.hf import run_folder, tokens
    from lit_small_lm.hf.importing import read_folder
    from lit_small_lm.hf.pickles import read_pickles
    from lit_small_lm.training.run_dir import environment, write_json

    discover(args.plugins)
    model = read_folder(args.folder, read_pickles(args.folder) if args.read_pickle else None)
    found = tokens.read_tokenizer(args.folder.resolve(), model.config, model.form.model.vocab_size, args.end)
    lacking = None in (found.encoder.specials.pad, found.encoder.specials.mask)
    if args.new_rows and lacking:
        found = tokens.with_new_rows(found)
    config = configuration(model.form.model, found.spec)
    with whole_folder(args.out) as folder:
        file = run_folder.write_checkpoint(folder, model, found, config)
        loaded = load(file, args.plugins)
        run_folder.check_loaded(model, loaded)
        (folder / "config.yaml").write_text(config)
        write_json(folder / "tokenizer.json", found.encoder.record())
        write_json(folder / "environment.json", environment())
    specials = found.encoder.specials
    return {
        "model_type": model.config["model_type"],
        "parameters": sum(tensor.numel() for tensor in loaded.net.parameters()),
        "vocab_size": specials.vocab_size,
        "dtypes": list(model.dtypes),
        "tokenizer": type(found.spec).__name__,
        "specials": specials.ids(),
        "notes": list(found.notes),
        "checkpoint": str(args.out / file.relative_to(folder)),
    }


def configuration(model: Any, tokenizer: Any) -> str:
    """The whole configuration of a run that trains such a model, as YAML; data and steps are for the user to name."""
    from lit_small_lm.cli.resolving import resolved

    init_args = {"backbone": model.backbone.to_dict(), "shape": model.shape.to_dict()}
    data = {"tokenizer": tokenizer.to_dict(), "seq_len": min(model.max_length or SEQ_LEN, SEQ_LEN)}
    tree = {"model": {"class_path": "AutoregressiveLM", "init_args": init_args}, "data": data}
    return resolved(yaml.safe_dump(tree))
