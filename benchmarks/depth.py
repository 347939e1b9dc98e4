"""The curse of depth: eight norm schemes at two depths, each with a learning rate and an initial deviation of its own.

    python benchmarks/depth.py [autoregressive] [masked] [--schemes NAME ...] [--depths N ...] [--runs DIR] [--out DIR]

prints one JSON line, and writes a table, records and plots. `--quick` is a small piece of it. The grid below was fixed
before any of its runs: every cell is trained once, for GRID_STEPS; the best on the validation split is then trained for
STEPS with each of SEEDS, none of them the grid's, and scored on the test split. Runs of one seed see the same tokens in
the same order, so that schemes are compared seed by seed. A study that was stopped goes on with the runs it lacks.
"""

import argparse
import contextlib
import io
import json
import math
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from lit_small_lm import __main__ as cli

STUDY = Path(__file__).parents[1] / "configs" / "studies" / "curse_of_depth"
SCHEMES = ("pre", "pre_scaled", "lns", "lns_scaled", "peri", "post", "deep_norm", "mix")
OBJECTIVES = ("autoregressive", "masked")
DEPTHS = (12, 32)
RATES = (0.002, 0.006, 0.02)
DEVIATIONS = (0.05, 0.15)
GRID_SEED, SEEDS = 0, (1, 2, 3)
GRID_STEPS, STEPS = 200, 400
SCORED_ROWS, DRAWS = 64, 2
"""A batch of rows of 64 tokens when the whole test split is scored, and the draws of noise for a bound."""
REMOVAL_ROWS = 64
"""Rows spread over the test split for the removal of layers."""
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Student's quantiles, two-sided, by degrees of freedom."""


class Cell(NamedTuple):
    """One training."""

    objective: str
    layers: int
    scheme: str
    rate: float
    deviation: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in self)


class Study(NamedTuple):
    """What is trained; the quick form is a small piece of it."""

    objectives: tuple[str, ...] = OBJECTIVES
    depths: tuple[int, ...] = DEPTHS
    schemes: tuple[str, ...] = SCHEMES
    rates: tuple[float, ...] = RATES
    deviations: tuple[float, ...] = DEVIATIONS
    seeds: tuple[int, ...] = SEEDS
    grid_steps: int = GRID_STEPS
    steps: int = STEPS
    scored_share: str = "1.0"
    removal_rows: int = REMOVAL_ROWS

    def arms(self) -> Iterator[tuple[str, int, str]]:
        yield from product(self.objectives, self.depths, self.schemes)


QUICK = Study(
    depths=(2,), schemes=("pre", "lns"), rates=(0.006,), seeds=(1, 2),
    grid_steps=2, steps=4, scored_share="1", removal_rows=8,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- training
def trained(cell: Cell, study: Study, runs: Path) -> dict[str, object]:
    """The record of a run, trained if it is not there: its figures and, of a scored run, the profile over depth."""
    folder = runs / cell.name
    record = folder / "record.json"
    if not record.is_file():
        final = cell.steps == study.steps
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        said = quietly(runs, "fit", [*arguments(cell, study, final), "--run_dir", str(folder)])
        if final and said is not None:
            scored = ["--data.batch_size", str(SCORED_ROWS), "--draws", str(DRAWS)]
            scored += ["--trainer.limit_test_batches", study.scored_share]
            quietly(runs, "test", ["--run_dir", str(folder), *scored])
        record.write_text(json.dumps({**cell._asdict(), **figures(folder)}))
        print(cell.name, json.loads(record.read_text())["bits_per_byte"], file=sys.stderr, flush=True)
    return json.loads(record.read_text())


def arguments(cell: Cell, study: Study, final: bool) -> list[str]:
    """What the command line is given for a cell."""
    options = {
        "model.backbone": STUDY / "schemes" / f"{cell.scheme}.yaml",
        "model.backbone.init.std_dev": cell.deviation,
        "model.shape.n_layers": cell.layers,
        "optim.lr": cell.rate,
        "seed_everything": cell.seed,
        "trainer.max_steps": cell.steps,
        "trainer.val_check_interval": cell.steps,
        "depth.every_n_steps": max(1, cell.steps // 4) if final else "null",
        "trainer.enable_progress_bar": "false",
    }
    if study.steps < STEPS:
        options["trainer.limit_val_batches"] = 1
    return [
        "-c",
        str(STUDY / f"{cell.objective}.yaml"),
        *(str(x) for key in options for x in (f"--{key}", options[key])),
    ]


def quietly(runs: Path, command: str, argv: list[str]) -> str | None:
    """Run a command in this process and return what it prints; None: the training diverged."""
    runs.mkdir(parents=True, exist_ok=True)
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        status = cli.main([command, *argv])
    with (runs / "log.txt").open("a") as log:
        log.write(said.getvalue())
    if status != 0 and "training diverged" not in said.getvalue():
        sys.exit(f"{command} {' '.join(argv)}: exit status {status}; see {runs / 'log.txt'}")
    return printed.getvalue() if status == 0 else None


def figures(folder: Path) -> dict[str, object]:
    """Bits per byte (masked diffusion: a bound) on the test split if scored, else on validation; depth profiles."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seen: dict[str, float] = {key: value for line in lines for key, value in line.items()}
    tested = folder / "test.json"
    source, prefix = (json.loads(tested.read_text()), "") if tested.is_file() else (seen, "val/")
    found = {
        name: source.get(f"{prefix}bits_per_byte{end}", source.get(f"{prefix}bits_per_byte_bound{end}"))
        for name, end in (("bits_per_byte", ""), ("standard_error", "_standard_error"))
    }
    return {**found, "split": "test" if tested.is_file() else "validation", "profile": profiles(seen)}


def profiles(seen: dict[str, float]) -> dict[str, list[float]]:
    """The last value of every figure of depth, by layer."""
    found: dict[str, dict[int, float]] = {}
    for key, value in seen.items():
        name, _, layer = key.partition("/")
        if name.startswith("depth_") and layer.isdigit():
            found.setdefault(name.removeprefix("depth_"), {})[int(layer)] = value
    return {name: [layers[layer] for layer in sorted(layers)] for name, layers in found.items()}


def best(arm: tuple[str, int, str], study: Study, runs: Path) -> dict[str, object]:
    """The best cell of an arm's grid, by validation."""
    cells = product(study.rates, study.deviations)
    grid = [trained(Cell(*arm, *cell, GRID_SEED, study.grid_steps), study, runs) for cell in cells]
    return min(grid, key=lambda record: record["bits_per_byte"] if finite(record) else math.inf)


def finite(record: dict[str, object]) -> bool:
    """Whether a run has a figure; one that diverged has none."""
    return record["bits_per_byte"] is not None and math.isfinite(record["bits_per_byte"])


def finals(arm: tuple[str, int, str], study: Study, runs: Path) -> list[dict[str, object]]:
    """The scored runs of an arm, one for each seed."""
    chosen = best(arm, study, runs)
    return [
        trained(Cell(*arm, chosen["rate"], chosen["deviation"], seed, study.steps), study, runs) for seed in study.seeds
    ]


# ------------------------------------------------------------------------------------------------------------ reporting
def removal(record: dict[str, object], study: Study, runs: Path) -> list[float]:
    """Rise of the loss without each layer alone, in nats per token, of a scored run."""
    folder = runs / Cell(**{name: record[name] for name in Cell._fields}).name
    file = folder / "removal.json"
    if not file.is_file():
        rows = ["--split", "test", "--rows", str(study.removal_rows)]
        file.write_text(quietly(runs, "analyze", [str(folder), "--only", "removal", "--json", *rows]))
    rises = json.loads(file.read_text())["results"]["removal"]["rise"]
    return [math.nan if rise is None else rise for rise in rises]


class Arm(NamedTuple):
    """A scheme at a depth, trained with every seed."""

    objective: str
    layers: int
    scheme: str
    records: list[dict[str, object]]

    @property
    def bits(self) -> list[float]:
        return [record["bits_per_byte"] if finite(record) else math.nan for record in self.records]

    def profile(self, figure: str) -> list[float]:
        """(L,) means over the seeds that did not diverge; NaN if all did."""
        found = [record["profile"][figure] for record in self.records if finite(record)]
        return [statistics.fmean(values) for values in zip(*found, strict=True)] or [math.nan] * self.layers


def line(arm: Arm, base: Arm, study: Study) -> dict[str, object]:
    """What the table says of an arm; null: a seed diverged."""
    first = arm.records[0]
    apart = [value - other for value, other in zip(arm.bits, base.bits, strict=True)]
    variance, rise = arm.profile("variance"), arm.profile("removal")
    half = arm.layers // 2
    found = {
        "bits_per_byte": statistics.fmean(arm.bits),
        "seed_deviation": deviation(arm.bits),
        "from_pre": statistics.fmean(apart),
        "from_pre_95": T95[len(apart) - 1] * deviation(apart) / len(apart) ** 0.5,
        "variance_last_by_first": variance[-1] / variance[0],
        "removal_first_layer": rise[0],
        "removal_early": statistics.fmean(rise[1:half]) if half > 1 else math.nan,
        "removal_late": statistics.fmean(rise[half:]),
    }
    return {
        "objective": arm.objective,
        "layers": arm.layers,
        "scheme": arm.scheme,
        "learning_rate": first["rate"],
        "deviation": first["deviation"],
        "rate_at_the_edge": first["rate"] in (min(study.rates), max(study.rates)),
        **{name: round(value, 4) if math.isfinite(value) else None for name, value in found.items()},
    }


def deviation(values: list[float]) -> float:
    """The standard deviation; NaN if one of them is."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


HEADINGS = {
    "scheme": "scheme",
    "learning_rate": "rate",
    "deviation": "init",
    "bits_per_byte": "bits per byte",
    "seed_deviation": "deviation over seeds",
    "from_pre": "from Pre, paired",
    "from_pre_95": "95 % interval, +-",
    "variance_last_by_first": "variance last / first",
    "removal_first_layer": "without layer 0",
    "removal_early": "without another early one",
    "removal_late": "without a late one",
}


def table(lines: list[dict[str, object]]) -> str:
    """The lines as Markdown, a table for each objective and depth."""
    parts = []
    for objective, layers in dict.fromkeys((line["objective"], line["layers"]) for line in lines):
        parts += [f"\n## {objective}, {layers} layers\n", " | ".join(["", *HEADINGS.values(), ""]).strip()]
        parts += ["| " + " | ".join("---" for _ in HEADINGS) + " |"]
        own = [line for line in lines if (line["objective"], line["layers"]) == (objective, layers)]
        parts += ["| " + " | ".join(str(line[key]) for key in HEADINGS) + " |" for line in own]
    return "\n".join(parts).strip() + "\n"


PANELS = {
    "variance": ("variance of the stream", "log"),
    "gradient_norm": ("norm of the gradient", "log"),
    "angular_distance": ("angular distance to the next layer", "linear"),
    "removal": ("rise of the loss without the layer", "symlog"),
}


def draw_profiles(arms: list[Arm], file: Path) -> None:
    """Figures over depth at the end of training, a row of panels for each depth, one objective."""
    depths = list(dict.fromkeys(arm.layers for arm in arms))
    figure = Figure(figsize=(4.2 * len(PANELS), 3.4 * len(depths)), layout="constrained", dpi=100)
    rows = figure.subplots(len(depths), len(PANELS), squeeze=False)
    for (layers, places), (name, (label, scale)) in product(zip(depths, rows, strict=True), PANELS.items()):
        axes = places[list(PANELS).index(name)]
        for arm in (arm for arm in arms if arm.layers == layers):
            axes.plot(arm.profile(name), label=arm.scheme, linewidth=1.2)
        axes.set_yscale(scale, **({"linthresh": 1e-3} if scale == "symlog" else {}))
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SCHEMES))
    figure.savefig(file, metadata={"Software": None})


def draw_losses(arms: list[Arm], file: Path) -> None:
    """Bits per byte of every run, one objective; a dot is a seed."""
    figure = Figure(figsize=(7, 3.4), layout="constrained", dpi=100)
    axes = figure.subplots()
    depths = list(dict.fromkeys(arm.layers for arm in arms))
    for layers in depths:
        own = [arm for arm in arms if arm.layers == layers]
        shift = 0.2 * (depths.index(layers) - (len(depths) - 1) / 2)
        dots = [(place + shift, value) for place, arm in enumerate(own) for value in arm.bits]
        axes.plot(*zip(*dots, strict=True), "o", markersize=4, label=f"{layers} layers")
    axes.set_xticks(range(len(own)), [arm.scheme for arm in own])
    axes.set_ylabel("bits per byte")
    axes.legend()
    figure.savefig(file, metadata={"Software": None})


# ----------------------------------------------------------------------------------------------------------------- main
def measured(study: Study, runs: Path) -> Iterator[Arm]:
    """Every arm, trained where it was not, with its removal profile."""
    for objective, layers, scheme in study.arms():
        records = finals((objective, layers, scheme), study, runs)
        for record in filter(finite, records):
            record["profile"]["removal"] = removal(record, study, runs)
        yield Arm(objective, layers, scheme, records)


def report(study: Study, runs: Path, out: Path) -> dict[str, object]:
    """Train what is missing, write table, figures and records into `out`, and return the record."""
    out.mkdir(parents=True, exist_ok=True)
    arms = list(measured(study, runs))
    bases = {(arm.objective, arm.layers): arm for arm in arms if arm.scheme == "pre"}
    lines = [line(arm, bases[arm.objective, arm.layers], study) for arm in arms]
    (out / "table.md").write_text(table(lines))
    (out / "scored.jsonl").write_text("".join(json.dumps(record) + "\n" for arm in arms for record in arm.records))
    for objective in study.objectives:
        own = [arm for arm in arms if arm.objective == objective]
        draw_profiles(own, out / f"profiles-{objective}.png")
        draw_losses(own, out / f"losses-{objective}.png")
    names = [f"{'-'.join(map(str, arm))}-*-{GRID_SEED}-{study.grid_steps}/record.json" for arm in study.arms()]
    grid = [json.loads(file.read_text()) for name in names for file in sorted(runs.glob(name))]
    (out / "grid.jsonl").write_text("".join(json.dumps(record) + "\n" for record in grid))
    return {"benchmark": "depth", "table": lines}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("objectives", nargs="*", metavar="OBJECTIVE", help=", ".join(OBJECTIVES))
    parser.add_argument("--schemes", nargs="+", metavar="NAME", help="files of the study's schemes, pre among them")
    parser.add_argument("--depths", nargs="+", type=int, metavar="N", help=f"layers (default {DEPTHS})")
    parser.add_argument("--quick", action="store_true", help="two layers, a few steps")
    parser.add_argument("--runs", type=Path, default=Path("runs/curse_of_depth"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="folder of table and plots (default: that of the runs)")
    given = parser.parse_args()
    known = [file.stem for file in sorted((STUDY / "schemes").glob("*.yaml"))]
    for what, values, allowed in (("objective", given.objectives, OBJECTIVES), ("--schemes", given.schemes, known)):
        if unknown := set(values or []) - set(allowed):
            parser.error(f"{what} {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")
    if given.schemes and "pre" not in given.schemes:
        parser.error("--schemes without pre, which the others are compared with")
    return given


def main() -> None:
    """Run the study, or its quick form, and print its record."""
    given = options()
    with tempfile.TemporaryDirectory() as folder:
        whole, runs = (QUICK, Path(folder)) if given.quick else (Study(), given.runs)
        asked = {name: tuple(value) for name in ("objectives", "schemes", "depths") if (value := getattr(given, name))}
        record = report(whole._replace(**asked), runs, runs if given.quick else given.out or given.runs)
    record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
