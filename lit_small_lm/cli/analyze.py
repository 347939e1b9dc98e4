"""`lit-small-lm analyze RUN`: what each layer of a trained network does, measured on held-out text."""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_small_lm.cli.new_folder import refuse_used, whole_folder
from lit_small_lm.cli.options import Number, Options, place
from lit_small_lm.errors import RequestError

TEXT = """Measure what the layers of a trained model do, on held-out text of its own run or on text given with --data.*
(--data.source.path PATH): removal, swaps, angular distances, Jacobians and so on. Prints a summary; --out DIR writes
index.html, analysis.json and a PNG for each figure. Takes a run directory, also one made by import, or a checkpoint."""


def parser(command: str) -> Options:
    """The command's own options; those of the data section stand beside them."""
    from lit_small_lm.analysis.catalogue import ANALYSES
    from lit_small_lm.cli.examination import COUNT, add_text_options

    names = ", ".join(ANALYSES)
    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("path", type=place, metavar="RUN", help="a run directory, or one checkpoint file")
    parser.add_argument("--out", type=place, metavar="DIR", help="a new folder, or an empty one; none: print only")
    parser.add_argument("--only", metavar="NAMES", help=f"these analyses alone, with commas between: {names}")
    parser.add_argument("--skip", metavar="NAMES", help="all but these")
    parser.add_argument("--greedy", type=COUNT, metavar="N", help="layers that greedy removal takes (default half)")
    parser.add_argument("--probes", type=COUNT, default=2, help="random vectors for each row and layer (default 2)")
    parser.add_argument(
        "--noise", type=Number(float, above=0), default=0.1, help="noise over the weights' deviation (default 0.1)"
    )
    parser.add_argument("--noise_draws", type=COUNT, default=2, help="draws of that noise (default 2)")
    parser.add_argument(
        "--rescaled",
        action="store_true",
        help="also draw angular distances rescaled row by row, as arXiv 2502.05795 shows them",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a summary")
    add_text_options(parser)
    return parser


def run(command: str, argv: list[str]) -> int:
    """Analyse as asked; prints a summary, or one JSON object with `--json`."""
    args, rest = parser(command).parse_beside(argv, ["data"])
    names = _check(args)
    from lit_small_lm.analysis.report import lines
    from lit_small_lm.cli.examination import examined

    found = _report(examined(args, rest), args, names)
    if args.out is not None:
        _write(args.out, found, args.rescaled)
    if args.json:
        print(json.dumps(found))
        return 0
    print("\n".join(lines(found)))
    if args.out is not None:
        print(args.out / "index.html")
    return 0


def _check(args: argparse.Namespace) -> list[str]:
    """The analyses asked for. Raises RequestError for a value out of range."""
    from lit_small_lm.analysis.catalogue import chosen
    from lit_small_lm.cli.examination import check_text_options

    check_text_options(args)
    if args.out is not None:
        refuse_used(args.out)
    return chosen(args.only, args.skip)


def _report(model: Any, args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    from lit_small_lm.analysis.catalogue import ANALYSES, AnalysisSettings, analysed
    from lit_small_lm.analysis.report import report
    from lit_small_lm.cli.announcing import announced, seconds

    subject, text = model.subject(args)
    if args.greedy is not None and args.greedy > subject.depth:
        raise RequestError(f"--greedy: {args.greedy}; the model has {subject.depth} layers")
    settings = AnalysisSettings(model.model.objective.kind, args.greedy, args.probes, args.noise, args.noise_draws)
    parts = seconds(subject, {name: ANALYSES[name].cost(subject.depth, settings) for name in names})
    with announced(parts, f"{len(names)} analyses", "--skip {longest} or fewer --rows") as tell:
        results = analysed(subject, settings, names, tell)
    return report(model.model, model.name, subject, settings, results, text)


def _write(out: Path, found: Mapping[str, Any], rescaled: bool) -> None:
    from lit_small_lm.analysis.page import page
    from lit_small_lm.training.run_dir import write_json

    with whole_folder(out) as folder:
        images = images_of(found["results"], rescaled)
        write_json(folder / "analysis.json", found)
        (folder / "index.html").write_text(page(found, images), encoding="utf-8")
        for name, themes in images.items():
            (folder / f"{name}.png").write_bytes(themes["light"])


def images_of(results: Mapping[str, Mapping[str, Any]], rescaled: bool) -> dict[str, dict[str, bytes]]:
    """The figures of what was measured; none, and a line that says how to get them, without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        what = 'note: no figures: matplotlib is not installed; get it with: pip install "lit-small-lm[plot]"'
        print(what, file=sys.stderr)
        return {}
    plots = importlib.import_module("lit_small_lm.analysis.plots")
    wanted = {name: result for name, result in results.items() if "unmeasured" not in result}
    if rescaled and "angular" in wanted:
        wanted["angular_rescaled"] = wanted["angular"]
    return {
        name: {theme: plots.drawn(name, result, theme) for theme in plots.THEMES} for name, result in wanted.items()
    }
