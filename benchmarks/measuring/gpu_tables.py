"""The tables of `docs/performance.md` about a GPU, from the lines that `benchmarks/gpu.py` printed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "results"


class Column(NamedTuple):
    """A heading, and what of a line stands below it."""

    heading: str
    of: Callable[[dict[str, Any]], object]


def field(heading: str, name: str, form: str = "{}") -> Column:
    """A field of a line; nothing where there is none."""
    return Column(heading, lambda line: "" if line.get(name) is None else form.format(line[name]))


STEP = (
    field("step", "step_ms", "{:.0f} ms"),
    Column("range", lambda line: "{:.0f} to {:.0f}".format(*line["step_ms_range"])),
    field("tokens a second", "tokens_per_second", "{:,.0f}"),
    field("of the peak", "utilisation", "{:.1%}"),
    field("peak memory", "peak_gb", "{:.1f} GB"),
    field("first four steps", "first_steps_s", "{:.0f} s"),
)
DRAWN = (
    field("rows", "rows"),
    field("tokens a second, all rows", "tokens_per_second", "{:,.0f}"),
    field("an evaluation", "ms_per_forward", "{:.2f} ms"),
)
TABLES = {
    "gpu-training": (("gpu train", "gpu memory"), (
        field("case", "case"), field("`--compile`", "compile"),
        field("activations of layers", "activation_checkpointing", "checkpointing {}"), *STEP,
    )),
    "gpu-objectives": (("gpu objectives", "gpu documents"), (
        field("objective", "objective"), field("over next token", "ratio_to_next_token", "{:.2f}"),
        field("attention", "attention"), field("documents a row", "documents_per_row"), *STEP,
    )),
    "gpu-drawing": (("gpu decoding", "gpu diffusion"), (
        field("sampler", "sampler"), field("`step`", "step"), field("tokens an evaluation", "tokens_per_forward"),
        *DRAWN, field("of the bandwidth limit", "share_of_bandwidth_limit", "{:.1%}"),
    )),
}  # fmt: skip


def recorded() -> list[dict[str, Any]]:
    """The lines of the newest file of a GPU; of each question the last one, from the newest commit."""
    lines = [json.loads(line) for line in sorted(RESULTS.glob("*-h200.jsonl"))[-1].read_text().splitlines()]
    newest = lines[-1]["commit"]
    return [line for line in lines if line["commit"] == newest]


def table(lines: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """A row for each line."""
    rows = [[str(column.of(line)) for column in columns] for line in lines]
    head = [[column.heading for column in columns], ["---"] * len(columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (*head, *rows))


def tables() -> dict[str, str]:
    """What stands between the marks of each name."""
    lines = recorded()
    found = {}
    for name, (kinds, columns) in TABLES.items():
        found[name] = table([line for line in lines if line["benchmark"] in kinds], columns)
    line = lines[-1]
    by = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    best = next(line for line in lines if line["benchmark"] == "gpu ceilings")
    found["gpu-place"] = (
        f"{line['device']}, {line['machine']}, {line['date']}, commit {line['commit']}, {by}; `{line['command']}`. Its "
        f"best product of bfloat16 matrices ran at {best['matmul_tflops']:.0f} TFLOP/s, a copy at "
        f"{best['copy_gb_per_second']:,.0f} GB/s."
    )
    return found
