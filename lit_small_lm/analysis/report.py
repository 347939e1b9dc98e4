"""What an examination says of itself: model, text, settings, and the results, as plain data.

Nothing in it depends on when it was made, so that the same request gives the same file.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from lit_small_lm import __version__
from lit_small_lm.analysis.catalogue import ANALYSES, AnalysisSettings, rounded
from lit_small_lm.analysis.depth import effective
from lit_small_lm.analysis.subject import Subject
from lit_small_lm.checkpoint import LanguageModel

BOUNDS = {"exact": "exact likelihood", "upper": "an upper bound, estimated with draws of noise"}


def report(
    model: LanguageModel,
    name: str,
    subject: Subject,
    settings: AnalysisSettings,
    results: Mapping[str, Mapping[str, Any]],
    text: Mapping[str, Any],
) -> dict[str, Any]:
    """What `analysis.json` holds.

    Args:
        model: as `load` gives it.
        name: of the run or file.
        subject: what was examined.
        settings: of the analyses.
        results: by name.
        text: which split, how many rows, and how long they are.
    """
    loss, questions, spec = subject.loss(subject.full), subject.questions, model.net.spec
    depths = effective(results, loss.value, subject.depth)
    found = {
        "version": __version__,
        "model": {
            "name": name,
            "layers": subject.depth,
            "dim": model.net.dims.dim,
            "norm": type(spec.norm).__name__,
            "objective": type(model.objective).__name__,
            "parameters": sum(tensor.numel() for tensor in model.net.parameters()),
            "step": model.record["step"],
            "whole": spec.whole(model.net.dims).n_layers,
            "places": None if spec.kept is None else list(spec.places(subject.depth)),
        },
        "data": {
            **text,
            "documents": questions.documents,
            "tokens": int(questions.tokens.sum()) // questions.draws,
            "draws": questions.draws,
            "unit": questions.unit,
            "units": questions.count,
        },
        "settings": {"seed": subject.seed, **asdict(settings), "greedy": settings.greedy_count(subject.depth)},
        "hardware": hardware(model.net.embed.weight.device),
        "bound": BOUNDS[model.objective.bound],
        "loss": {"value": loss.value, "error": loss.error},
        "effective_depth": [{"layers": one.layers, "text": one.text} for one in depths],
        "how": {analysis: ANALYSES[analysis].how for analysis in results},
        "results": results,
    }
    return rounded(found)


def hardware(device: torch.device) -> str:
    """What it was measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    count = torch.get_num_threads()
    return f"CPU {platform.machine()}, {count} thread{'s' if count > 1 else ''}, torch {torch.__version__}"


def lines(found: Mapping[str, Any]) -> Sequence[str]:
    """The report in lines, for a terminal."""
    data, loss = found["data"], found["loss"]
    texts = [
        f"{found['model']['name']}: {found['model']['layers']} layers, {found['model']['norm']}, step "
        f"{found['model']['step']}; {data['tokens']:,} tokens of {data['documents']} documents; errors over "
        f"{data['units']} {data['unit']}",
        f"loss {_with_error(loss['value'], loss['error'])} nats per token ({found['bound']})",
    ]
    for one in found["effective_depth"]:
        texts.append(f"effective depth {one['layers']:.3g} of {found['model']['layers']}: {one['text']}")
    columns = {name: column for name, column in _columns(found["results"]).items() if column}
    texts += _table(columns, found["model"]["layers"])
    for name, result in found["results"].items():
        if "unmeasured" in result:
            texts.append(f"{name}: not measured: {result['unmeasured']}")
    return texts


SHOWN = {
    "removal": ("rise", "removed"),
    "profile": ("influence", "influence"),
    "gradient": ("norm", "gradient"),
    "usefulness": ("rise", "affine"),
    "jacobian": ("distance", "|J - I|"),
    "noise": ("rise", "noise"),
}
"""What of the analyses has one number a layer, and its head in the table."""


def _columns(results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    found = {}
    for name, (key, head) in SHOWN.items():
        result = results.get(name, {})
        if key in result:
            errors = result.get(f"{key}_error", [None] * len(result[key]))
            found[head] = [_with_error(*pair) for pair in zip(result[key], errors, strict=True)]
    return found


def _table(columns: Mapping[str, Sequence[str]], depth: int) -> list[str]:
    if not columns:
        return []
    rows = [["layer", *columns]] + [[str(i), *(column[i] for column in columns.values())] for i in range(depth)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _with_error(value: float | None, error: float | None) -> str:
    shown = "not finite" if value is None else f"{value:.4f}"
    return shown if error is None else f"{shown} +- {error:.4f}"
