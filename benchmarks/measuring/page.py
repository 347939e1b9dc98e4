"""The tables of `docs/performance.md`, from what has been recorded: `cd benchmarks; python -m measuring.page`.

Of each question the newest line of `results/*-cpu.jsonl` counts. A figure is held against its bar as it is, whatever
its spread.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from measuring import gpu_tables

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
Line = Mapping[str, Any]
Found = Callable[..., Line | None]
"""The newest line of a benchmark in which these fields have these values; `over`: that is held against this peer."""


class Figure(NamedTuple):
    """A number, with what it was measured with."""

    value: float
    spread: str
    line: Line


class Row(NamedTuple):
    """A figure and the bar it is held against."""

    what: str
    figure: Callable[[Found], Figure | None]
    bar: float
    better: str
    """">=" or "<=", what it should be to the bar."""
    digits: int = 2
    unit: str = ""


def ratio(unit: str, threads: int = 1, **fields: object) -> Callable[[Found], Figure | None]:
    """How much faster a peer is than another: by processor time in one thread, by the clock in more."""

    def figure(found: Found) -> Figure | None:
        line = found("training", over=unit, threads=threads, **fields)
        if line is None:
            return None
        over = line["over"][unit]
        return Figure(over["ratio"], f"{over['lower']} to {over['upper']}", line)

    return figure


def cost(unit: str, scale: float = 1, less: float = 0, **fields: object) -> Callable[[Found], Figure | None]:
    """How much slower a peer is, times `scale` after `less` is taken away: per cent over it with 100 and 1."""

    def figure(found: Found) -> Figure | None:
        faster = ratio(unit, **fields)(found)
        if faster is None:
            return None
        over = faster.line["over"][unit]
        low, value, high = (scale * (1 / over[name] - less) for name in ("upper", "ratio", "lower"))
        return Figure(value, f"{low:.2f} to {high:.2f}", faster.line)

    return figure


def of(benchmark: str, *path: str, spread: tuple[str, str] | None = None, **fields: object) -> Callable:
    """A number somewhere in a line, and two others as its spread."""

    def figure(found: Found) -> Figure | None:
        line = found(benchmark, **fields)
        if line is None or path[0] not in line:
            return None
        holder: Any = line
        for name in path[:-1]:
            holder = holder[name]
        value = holder[path[-1]]
        value = max(value.values()) if isinstance(value, dict) else value
        return Figure(value, f"{holder[spread[0]]} to {holder[spread[1]]}" if spread else "", line)

    return figure


TABLES: dict[str, list[Row]] = {
    "training": [
        Row("`fit`, S1, over transformers' loop", ratio("loop", shape="S1", peer="fit"), 1.0, ">="),
        Row("`fit`, S2, over transformers' loop", ratio("loop", shape="S2", peer="fit"), 1.0, ">="),
        Row("`fit --compile default`, S1, over that loop", ratio("loop", shape="S1", peer="fit_compiled"), 1.2, ">="),
        Row("`fit --compile layers`, S2, over that loop", ratio("loop", shape="S2", peer="fit_layers"), 1.2, ">="),
        *(
            Row(f"`{command}`, S1, over that loop, two threads by the clock",
                ratio("loop", 2, shape="S1", peer=peer), bar, ">=")
            for command, peer, bar in (("fit", "fit", 1.0), ("fit --compile default", "fit_compiled", 1.2))
        ),
        Row(
            "`fit --compile default`, S1, over litgpt compiled",
            ratio("litgpt_compiled", shape="S1", peer="fit_compiled"), 1.05, ">=",
        ),
        *(
            Row(f"`fit` in bf16-mixed, S1, over {what}", ratio(peer, shape="S1", peer="fit_bf16"), 1.0, ">=")
            for peer, what in (("loop_bf16", "that loop under autocast"), ("loop", "that loop in float32"))
        ),
        Row(
            "`fit --compile default` in bf16-mixed, S1, over that loop compiled under autocast",
            ratio("loop_bf16_compiled", shape="S1", peer="fit_bf16_compiled"), 1.0, ">=",
        ),
        Row("masked diffusion, S1, over a dense step", ratio("loop_masked", shape="S1", peer="masked"), 1.25, ">="),
        Row(
            "masked diffusion, S1, compiled, over a dense step",
            ratio("loop_masked", shape="S1", peer="masked_compiled"), 1.25, ">=",
        ),
        Row("block diffusion, S1, in AR steps", cost("module", shape="S1", peer="block"), 2.1, "<="),
        Row(
            "trainer over a bare loop, S1",
            cost("module", 100, 1, shape="S1", peer="fit"), 2, "<=", 1, " %",
        ),
        Row(
            "trainer over a bare loop, tiny network",
            of("training", "over", "module", "ms_more", shape="tiny", peer="fit"), 1.5, "<=", 2, " ms",
        ),
        *(
            Row(f"rate of a step of {shape} compiled, in that of MKL's best product",
                of("training", "percent", shape=shape, peer=peer, threads=1), 62, ">=", 0, " %")
            for shape, peer in (("S1", "fit_compiled"), ("S2", "fit_layers"))
        ),
        Row(
            "peak memory, S1 compiled",
            of("training", "peak_mb", shape="S1", peer="fit_compiled", threads=1), 900, "<=", 0, " MB",
        ),
        Row(
            "peak memory, S2, layers compiled",
            of("training", "peak_mb", shape="S2", peer="fit_layers", threads=1), 2400, "<=", 0, " MB",
        ),
    ],
    "generation": [
        Row(f"{shape}, batch {batch}, over transformers' `generate`",
            of("generation", "cached_by_theirs", spread=("lowest", "highest"), shape=shape, batch=batch, threads=1),
            bar, ">=")
        for shape, batch, bar in (("S1", 1, 1.65), ("S1", 16, 1.15), ("S2", 1, 1.25))
    ] + [
        Row("break-even of block-wise filling, S1, batch 1, tokens an evaluation",
            of("generation", "blocks_break_even", shape="S1", batch=1, threads=1), 4, "<="),
    ],
    "beside": [
        Row("reading a store, in S1 training rates", of("data", "read_concatenate_by_trained"), 100, ">=", 0),
        Row(
            "preparing a store, in `encode_batch` rates",
            of("tokenising", "prepare_by_encode_batch_processor"), 0.9, ">=",
        ),
        Row("`--help`", of("startup", "processor_seconds", "help"), 0.5, "<=", 2, " s"),
        Row(
            "`fit` to its first step, over the import of Lightning's command line",
            of("startup", "processor_seconds", "fit_over_import", spread=("lowest", "highest")), 1.0, "<=", 2, " s",
        ),
        Row("step time over the line from 12 to 64 layers", of("scaling", "by_linear", over="layers"), 1.05, "<="),
        Row("step time over operations, width 96 to 768", of("scaling", "by_operations", over="width"), 1.0, "<="),
        Row(
            "validation, checkpoints and telemetry, S1",
            of("intervals", "percent_together", shape="S1"), 5, "<=", 1, " %",
        ),
        Row(
            "memory that 2,000 further steps take",
            of("intervals", "growth_of_last_two_thirds_mb", steps=3000), 5, "<=", 1, " MB",
        ),
    ],
}  # fmt: skip


def recorded() -> list[Line]:
    """All lines that say which commit they are of, the oldest first."""
    files = sorted(RESULTS.glob("*-cpu.jsonl"))
    lines = (json.loads(line) for file in files for line in file.read_text().splitlines())
    return [line for line in lines if "commit" in line]


def newest(lines: list[Line]) -> Found:
    """What finds the newest one."""

    def found(benchmark: str, over: str | None = None, **fields: object) -> Line | None:
        wanted = {"benchmark": benchmark, **fields}
        matching = (line for line in reversed(lines) if all(line.get(key) == value for key, value in wanted.items()))
        return next((line for line in matching if over is None or over in line["over"]), None)

    return found


def table(rows: list[Row], found: Found) -> str:
    """A row for each figure there is."""
    text = ["| | measured | spread | bar | | command, commit, load |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        figure = row.figure(found)
        if figure is None:
            text.append(f"| {row.what} | not measured | | {row.better} {row.bar}{row.unit} | | |")
            continue
        met = figure.value >= row.bar if row.better == ">=" else figure.value <= row.bar
        value = f"{figure.value:,.{row.digits}f}{row.unit}"
        by = f"`{figure.line['command']}`, {figure.line['commit']}, load {figure.line['load']}"
        words = [row.what, value, figure.spread, f"{row.better} {row.bar}{row.unit}", "met" if met else "not met", by]
        text.append(f"| {' | '.join(words)} |")
    return "\n".join(text)


def profile(lines: list[Line]) -> str:
    """A column for each shape and peer that was profiled, of the latest line."""
    profiled = {f"{line['shape']} {line['label']}": line for line in lines if line["benchmark"] == "profiling"}
    columns = {name: line["percent"] for name, line in profiled.items()}
    kinds = [kind for column in columns.values() for kind in column]
    text = ["| per cent of a step", *columns], ["| ---", *("---" for _ in columns)]
    rows = ([f"| {kind}", *(str(column[kind]) for column in columns.values())] for kind in dict.fromkeys(kinds))
    where = dict.fromkeys(f"`{line['command']}`, {line['commit']}, load {line['load']}" for line in profiled.values())
    return "\n".join([*(f"{' | '.join(row)} |" for row in (*text, *rows)), "", f"{'; '.join(where)}."])


def places(lines: list[Line]) -> str:
    """The machines and versions that figures are from."""
    found = (f"{line['machine']}, {line['date']}: {versions(line['versions'])}" for line in lines)
    return "\n".join(f"- {place}" for place in dict.fromkeys(found))


def versions(found: Mapping[str, str]) -> str:
    """Names and versions in a row."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def between(text: str, name: str, content: str) -> str:
    """The text with new content between the marks of a name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n\n{content}\n\n{end}", text, flags=re.S)


def main() -> None:
    """Write every table between its marks."""
    lines, text = recorded(), PAGE.read_text()
    for name, rows in TABLES.items():
        text = between(text, name, table(rows, newest(lines)))
    for name, content in gpu_tables.tables().items():
        text = between(text, name, content)
    text = between(text, "profile", profile(lines))
    PAGE.write_text(between(text, "places", places(lines)))


if __name__ == "__main__":
    main()
