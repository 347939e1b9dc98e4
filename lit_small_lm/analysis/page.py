"""The analyses as one HTML file that needs nothing else: text, figures, and every number in a table.

Figures are PNGs inside the file, in a light and a dark form; without matplotlib the tables, whose cells are shaded by
their value, stand alone. Everything that came from outside is escaped.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lit_small_lm.analysis.catalogue import ANALYSES

STYLE = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5c6670;--paper:#fff;--line:#d9dee3;--tint:59,130,196}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa4ae;--paper:#16181c;--line:#343a41}}
body{margin:0 auto;max-width:62rem;padding:1rem;font:16px/1.5 system-ui,sans-serif}
body{color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem;margin:.5rem 0}
h2{font-size:1.2rem;margin:2.2rem 0 .3rem;border-top:1px solid var(--line);padding-top:1rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}img{max-width:100%;height:auto;display:block}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .5rem;text-align:right;vertical-align:top;white-space:nowrap}th{color:var(--soft);font-weight:600}
td.text{text-align:left;white-space:normal}a{color:inherit}summary{cursor:pointer;color:var(--soft)}code{overflow-wrap:anywhere}
"""
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
"""

Rows = Mapping[int, str]
"""Length of a vector -> what its entries are of; of any other length they are steps."""
Images = Mapping[str, Mapping[str, bytes]]
"""Name of a figure -> theme -> PNG."""


def page(report: Mapping[str, Any], images: Images) -> str:
    """The whole page.

    Args:
        report: what `analysis.json` holds.
        images: may be empty.
    """
    title = f"Layers of {report['model']['name']}"
    parts = [HEAD.format(title=escape(title), style=STYLE), f"<h1>{escape(title)}</h1>"]
    parts += [_facts(report), _contents(report["results"]), _effective(report)]
    for name, result in report["results"].items():
        parts.append(_section(name, result, images, report["model"]["layers"]))
    return "".join([*parts, "</body></html>\n"])


def _facts(report: Mapping[str, Any]) -> str:
    model, data, setting = report["model"], report["data"], report["settings"]
    loss = f"{report['loss']['value']:.4f}{error(report['loss']['error'])} nats per token, {report['bound']}"
    text = f"{data['split']} split: {data['tokens']:,} tokens in {data['rows']} rows of {data['row_length']}, of "
    text += f"{data['documents']} document{'s' if data['documents'] > 1 else ''}"
    if data["draws"] > 1:
        text += f", each with {data['draws']} draws of noise, the same for every variant"
    if data["unit"] == "rows":
        text += ". Too few documents for standard errors over them: they are over rows, as if rows were independent"
    rows = {
        "model": f"{model['layers']} layers x {model['dim']} dim, {model['norm']}, {model['objective']}, "
        f"{model['parameters']:,} parameters, step {model['step']}",
        "loss": loss,
        "text": text,
        "standard errors": f"over {data['units']} {data['unit']}; differences are paired: every variant answers the "
        "same questions",
        "seed": str(setting["seed"]),
        "hardware": report["hardware"],
        "layers": "counted from 0, as in the names of the weights",
    }
    if model["places"] is not None:
        rows["pruned"] = f"what is left of {model['whole']} layers: {', '.join(map(str, model['places']))}"
    cells = (f'<tr><th>{escape(key)}</th><td class="text">{escape(value)}</td></tr>' for key, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _contents(names: Iterable[str]) -> str:
    links = (f'<a href="#{name}">{escape(ANALYSES[name].title)}</a>' for name in names)
    between = " \N{MIDDLE DOT} "
    return f'<p class="soft">{between.join(links)}</p>'


def _effective(report: Mapping[str, Any]) -> str:
    if not report["effective_depth"]:
        return ""
    rows = (
        f'<tr><td>{number(one["layers"])}</td><td class="text">{escape(one["text"])}</td></tr>'
        for one in report["effective_depth"]
    )
    note = "There is no one definition of it; these readings need not agree."
    return (
        f"<h2>Effective depth</h2><p>Of {report['model']['layers']} layers:</p><table>{''.join(rows)}</table>"
        f'<p class="soft">{note}</p>'
    )


def _section(name: str, result: Mapping[str, Any], images: Images, depth: int) -> str:
    about = ANALYSES[name]
    head = f'<h2 id="{name}">{escape(about.title)}</h2><p>{escape(about.text)}</p>'
    if "unmeasured" in result:
        return f'{head}<p class="soft">Not measured: {escape(result["unmeasured"])}.</p>'
    figures = [_figure(images[name], about.title)] if name in images else []
    if f"{name}_rescaled" in images:
        note = "The same, each block size stretched to 0 to 1 by itself (clipped to its 1st to 99th percentile), as "
        note += "arXiv 2502.05795 shows it. Rows cannot be compared with each other, and no value is an angle."
        figures.append(f"<p>{note}</p>{_figure(images[f'{name}_rescaled'], f'{about.title}, rescaled')}")
    opened = "" if figures else " open"
    rows = {} if name == "greedy" else {depth: "layer", depth + 1: "layers run"}
    tables = "".join(_tables(result, rows))
    return (
        f'{head}{"".join(figures)}<p class="soft">{escape(about.how)}</p>'
        f"<details{opened}><summary>Numbers</summary>{tables}</details>"
    )


def _figure(themes: Mapping[str, bytes], title: str) -> str:
    light, dark = (base64.b64encode(themes[theme]).decode() for theme in ("light", "dark"))
    return (
        '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark}"><img alt="{escape(title)}" '
        f'src="data:image/png;base64,{light}"></picture>'
    )


def _tables(result: Mapping[str, Any], rows: Rows, name: str = "") -> Iterable[str]:
    """Single numbers, then vectors side by side, then matrices."""
    for key, value in result.items():
        if value is None or isinstance(value, (int, float)):
            yield f"<p>{escape(_words(name, key))}: {number(value)}</p>"
    vectors = {key: value for key, value in result.items() if isinstance(value, list) and not _is_matrix(value)}
    for length in sorted({len(value) for value in vectors.values()}):
        chosen = {key: value for key, value in vectors.items() if len(value) == length}
        yield _vectors(chosen, name, rows.get(length, "step"))
    for key, value in result.items():
        if isinstance(value, dict):
            yield from _tables(value, rows, key)
        elif _is_matrix(value) and not key.endswith("_error"):
            yield f"<p>{escape(_words(name, key))}</p>{_shaded(value)}"


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def _words(name: str, key: str) -> str:
    return f"{name} {key}".strip().replace("_", " ")


def _vectors(vectors: Mapping[str, Sequence[Any]], name: str, rows_are: str) -> str:
    """Columns with their errors beside them."""
    keys = [key for key in vectors if not key.endswith("_error")]
    heads = "".join(f"<th>{escape(_words(name, key))}</th>" for key in keys)
    rows = []
    for index in range(len(vectors[keys[0]])):
        cells = (number(vectors[key][index]) + error(_at(vectors, f"{key}_error", index)) for key in keys)
        rows.append(f"<tr><th>{index}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="scroll"><table><tr><th>{rows_are}</th>{heads}</tr>{"".join(rows)}</table></div>'


def _at(vectors: Mapping[str, Sequence[Any]], key: str, index: int) -> Any:
    return vectors[key][index] if key in vectors else None


def _shaded(matrix: Sequence[Sequence[float | None]]) -> str:
    """Cells darker the larger they are."""
    values = [abs(value) for row in matrix for value in row if value is not None]
    most = max(values, default=0.0) or 1.0
    width = max(map(len, matrix))
    heads = "".join(f"<th>{index}</th>" for index in range(width))
    rows = []
    for index, row in enumerate(matrix):
        cells = "".join(f"<td{_shade(value, most)}>{number(value)}</td>" for value in row)
        rows.append(f"<tr><th>{index}</th>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'


def _shade(value: float | None, most: float) -> str:
    return "" if value is None else f' style="background:rgba(var(--tint),{abs(value) / most * 0.8:.2f})"'


def number(value: float | None) -> str:
    """Three digits; what is not finite is said."""
    if value is None:
        return "not finite"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def error(value: float | None) -> str:
    """` ± 0.01`, or nothing where there is none."""
    return "" if value is None else f" \N{PLUS-MINUS SIGN} {value:.2g}"
