"""`lit-small-lm prune RUN`: a trained model with fewer layers, or with fewer weights, as a run like any other."""

import argparse
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from lit_small_lm.cli.new_folder import refuse_used, whole_folder
from lit_small_lm.cli.options import Number, Options, place
from lit_small_lm.errors import RequestError, RunError

TEXT = """Leave out layers of a trained model, named or chosen by what they do, or set its smallest weights to zero;
nothing is trained again. What it costs is measured on held-out text of the model's own run, or on text given with
--data.*. With --out DIR the pruned model is written as a run that fit --init_from, test, generate and export take."""


def parser(command: str) -> Options:
    """The command's own options; those of the data section stand beside them."""
    from lit_small_lm.analysis.pruning import METRICS
    from lit_small_lm.analysis.sparsity import ALLOCATIONS, PATTERNS
    from lit_small_lm.cli.examination import add_text_options

    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("path", type=place, metavar="RUN", help="a run directory, or one checkpoint file")
    parser.add_argument("--layers", metavar="LIST", help="layers to leave out, counted from 0, such as 3,5-7")
    parser.add_argument(
        "--keep", type=Number(int, low=1, high=10_000), metavar="N", help="leave out all but N layers, chosen --by"
    )
    parser.add_argument("--by", choices=list(METRICS), help="how they are chosen (default removal)")
    parser.add_argument(
        "--sparsity",
        type=Number(float, above=0, below=1),
        metavar="S",
        help="share of the layers' weights to set to zero",
    )
    parser.add_argument("--by_depth", choices=list(ALLOCATIONS), help="share of each layer (default uniform)")
    parser.add_argument("--pattern", choices=list(PATTERNS), help="which weights (default unstructured)")
    parser.add_argument("--out", type=place, metavar="DIR", help="a new folder, or an empty one; none: measure only")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    add_text_options(parser)
    return parser


def run(command: str, argv: list[str]) -> int:
    """Prune as asked; prints what it costs, or one JSON object with `--json`."""
    args, rest = parser(command).parse_beside(argv, ["data"])
    _check(args)
    from lit_small_lm.analysis.catalogue import rounded
    from lit_small_lm.cli.examination import examined

    model = examined(args, rest)
    pruned, found = _sparse(model, args) if args.sparsity is not None else _shallow(model, args)
    found = rounded({"model": model.name, "out": None if args.out is None else str(args.out), **found})
    if args.out is not None:
        record = {**pruned.record, "pruned": {**found, "before": model.model.record.get("pruned")}}
        _write(args, dataclasses.replace(pruned, record=record))
    print(json.dumps(found) if args.json else "\n".join(_lines(found)))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise RequestError for options that do not go together, or a value out of range."""
    from lit_small_lm.cli.examination import check_text_options

    check_text_options(args)
    modes = [name for name in ("layers", "keep", "sparsity") if getattr(args, name) is not None]
    if len(modes) != 1:
        said = f"--{modes[0]} and --{modes[1]} exclude each other; give" if modes else "what to prune is not said; give"
        raise RequestError(f"{said} one of --layers, --keep and --sparsity")
    for name, mode in {"by": "keep", "by_depth": "sparsity", "pattern": "sparsity"}.items():
        if getattr(args, name) is not None and mode != modes[0]:
            raise RequestError(f"--{name}: goes with --{mode}, not with --{modes[0]}")
    _check_sparsity(args)
    if args.out is not None:
        refuse_used(args.out)


def _check_sparsity(args: argparse.Namespace) -> None:
    value = args.sparsity
    if args.pattern == "2:4" and value != 0.5:
        raise RequestError(f"--sparsity: {value} with --pattern 2:4, which sets half of the weights to zero; give 0.5")
    if args.pattern == "2:4" and args.by_depth not in (None, "uniform"):
        raise RequestError(f"--by_depth: {args.by_depth} with --pattern 2:4, whose share is the same everywhere")


def _shallow(model: Any, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model without the layers asked for, and what that costs."""
    from lit_small_lm.analysis.pruning import parsed, refuse_keep, without_layers
    from lit_small_lm.analysis.subject import Variant

    depth, kind = len(model.model.net.layers), model.model.objective.kind
    if args.layers is not None:
        layers = parsed(args.layers, depth)
    else:
        refuse_keep(args.keep, depth)
    try:
        subject, text = model.subject(args)
    except (RequestError, RunError) as error:
        if args.keep is not None or model.asked:
            raise
        return without_layers(model.model, layers), {"layers": layers, "unmeasured": str(error)}
    if args.keep is not None:
        layers = _chosen(subject, kind, args)
    left = tuple(index for index in range(depth) if index not in layers)
    rise = subject.rise(subject.nats([Variant(left)])[0])
    found = {"by": args.by or "removal"} if args.keep is not None else {}
    return without_layers(model.model, layers), {"layers": layers, **found, **_costs(subject, text, *rise)}


def _chosen(subject: Any, kind: str, args: argparse.Namespace) -> list[int]:
    """The layers that go, with a word on how long it takes to choose them."""
    from lit_small_lm.analysis.pruning import METRICS, chosen
    from lit_small_lm.cli.announcing import announced, seconds

    by = args.by or "removal"
    parts = seconds(subject, {by: METRICS[by].cost(subject.depth, subject.depth - args.keep)})
    with announced(parts, f"choosing by {by}", "--by influence or fewer --rows") as tell:
        return chosen(by, subject, kind, args.keep, partial(tell, by))


def _costs(subject: Any, text: Mapping[str, Any], rise: float, error: float) -> dict[str, Any]:
    loss, questions = subject.loss(subject.full), subject.questions
    return {
        "loss": loss.value,
        "rise": rise,
        "rise_error": error,
        "text": {**text, "tokens": int(questions.tokens.sum()) // questions.draws, "documents": questions.documents},
        "errors_over": f"{questions.count} {questions.unit}",
        "seed": subject.seed,
    }


def _sparse(model: Any, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model with zeros, and what they cost by sparsity and depth."""
    from lit_small_lm.analysis import sparsity
    from lit_small_lm.cli.announcing import announced, seconds

    pattern, how = args.pattern or "unstructured", args.by_depth or "uniform"
    subject, text = model.subject(args)
    layers = list(subject.net.layers)
    levels = [0.5] if pattern == "2:4" else [args.sparsity * part / 4 for part in (1, 2, 3, 4)]
    weights = sparsity.sizes(layers)
    parts = seconds(subject, {"sparsity": sparsity.cost(subject.depth, len(levels))})
    with announced(parts, f"{len(levels)} sparsities of {subject.depth} layers", "fewer --rows") as tell:
        by_depth = sparsity.costs(subject, levels, pattern, partial(tell, "sparsity"))
    plans = [sparsity.allocated(how, level, by_depth["rise"][-1], weights) for level in levels]
    whole = sparsity.whole_costs(subject, plans, pattern)
    costs = _costs(subject, text, whole["rise"][-1], whole["rise_error"][-1])
    sparsity.make_sparse(subject, plans[-1], pattern)
    found = {"sparsity": args.sparsity, "zeros": sparsity.zeros(list(subject.net.layers)), "pattern": pattern}
    table = {"by_depth": how, "shares": plans[-1], "whole": whole, "alone": by_depth}
    return model.model, {**found, **table, **costs}


def _write(args: argparse.Namespace, model: Any) -> None:
    """The run folder; read back before it appears. Raises RunError if it gives other logits."""
    from lit_small_lm.analysis.pruning import check_same, content
    from lit_small_lm.checkpoint import checkpoint_name, load, write
    from lit_small_lm.training.run_dir import environment, write_json

    config = _configuration(model)
    model = dataclasses.replace(model, record={**model.record, "config": config})
    with whole_folder(args.out) as folder:
        file = folder / "checkpoints" / checkpoint_name(model.record["step"])
        write(content(model, importlib.metadata.version("lightning")), file)
        check_same(model, list(model.net.layers), load(file, args.plugins, model.net.embed.weight.device.type))
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        write_json(folder / "pruned.json", model.record["pruned"])
        write_json(folder / "tokenizer.json", model.encoder.record())
        write_json(folder / "environment.json", environment())


def _configuration(model: Any) -> str:
    """The configuration of the model's run, as YAML, with the family and shape it has now."""
    from lit_small_lm.cli.examination import recorded_config
    from lit_small_lm.shapes import fixed

    tree = recorded_config(model)
    section = tree.setdefault("model", {"class_path": "AutoregressiveLM"})
    parts = {"backbone": model.net.spec.to_dict(), "shape": fixed(model.net.dims).to_dict()}
    section["init_args"] = {**(section.get("init_args") or {}), **_listed(parts)}
    return yaml.safe_dump(tree, sort_keys=False)


def _listed(value: Any) -> Any:
    """Tuples as lists, which YAML has."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _lines(found: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    if "layers" in found:
        lines.append(f"{found['model']}: without layers {', '.join(map(str, found['layers']))}")
    else:
        lines.append(
            f"{found['model']}: {100 * found['zeros']:.1f} % of the layers' weights are zero ({found['pattern']}, "
            f"{found['by_depth']})"
        )
        lines += _sparsity_table(found)
    if "unmeasured" in found:
        lines.append(f"loss not measured: {found['unmeasured']}")
    else:
        text = found["text"]
        off = "" if found["rise_error"] is None else f" +- {found['rise_error']:.4f}"
        after = "not finite" if found["rise"] is None else f"{found['loss'] + found['rise']:.4f}"
        lines.append(
            f"loss {found['loss']:.4f} -> {after} nats per token, {_number(found['rise'])}{off} "
            f"({text['tokens']:,} tokens of {text['documents']} documents; paired, over {found['errors_over']})"
        )
    return lines if found["out"] is None else [*lines, found["out"]]


def _sparsity_table(found: Mapping[str, Any]) -> list[str]:
    """The rise of the loss, a row for the whole network and one for each layer alone, a column for each sparsity."""
    alone, whole = found["alone"], found["whole"]
    rows = [["zeros", *(f"{level:.3f}" for level in alone["levels"]), "share"]]
    rows.append(["all", *map(_number, whole["rise"]), f"{found['sparsity']:.3f}"])
    for layer, share in enumerate(found["shares"]):
        rows.append([f"layer {layer}", *(_number(level[layer]) for level in alone["rise"]), f"{share:.3f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
