"""Is a tenth of the tokens enough to turn an autoregressive model into a diffusion model?

    python benchmarks/conversion.py [--quick]

prints one JSON line. An autoregressive model of N tokens is converted with N/10 tokens, by block sizes
(`WSDConversion`), by annealed attention masks (`AttentionAnnealing`) and at once, against masked diffusion from scratch
with N/10, N and 11N/10 tokens: bits per byte that a held-out text takes at most, all of them the same bound (one block
as long as a row) on the same documents. Bytes of the standard library of this Python; every arm has the same network,
the same rows in the same order, batch and form of schedule.

Fixed beforehand: the rates of `GRID` are tried for every arm with seed `TUNING`, judged by the validation split (11N/10
takes that of N); the figures are of the test split and of other seeds. Converted models predict from the position
before, as the autoregressive one does, those from scratch from a token's own. `seed_error` is the standard error over
seeds, `document_error` that over documents (the mean of those of the seeds); `over_scratch` compares with the last arm
seed by seed.
"""

import contextlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from lit_small_lm.__main__ import main as command

QUICK = "--quick" in sys.argv
STEPS, ROWS, LENGTH = (20, 4, 32) if QUICK else (600, 8, 128)
SEEDS, TUNING, DRAWS = (0,) if QUICK else (0, 1, 2), 100, 2
GRID = (0.01,) if QUICK else (0.001, 0.003, 0.01, 0.03)
SHAPE = {"dim": 16, "n_layers": 1, "n_heads": 2} if QUICK else {"dim": 64, "n_layers": 3, "n_heads": 2}
COMMON = {
    "model.shape": "FixedShape",
    **{f"model.shape.{key}": value for key, value in SHAPE.items()},
    "model.backbone.canon_at": "AC",
    "model.backbone.init.std_dev": 0.1,
    "data.tokenizer": "Bytes",
    "data.seq_len": LENGTH,
    "data.batch_size": ROWS,
    "schedule.warmup": 0.1,
    "schedule.decay": 0.3,
    "depth.every_n_steps": "null",
    "checkpoints.every_n_steps": 10**6,
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.limit_val_batches": 1 if QUICK else 40,
    "trainer.enable_progress_bar": "false",
}
if QUICK:
    COMMON["data.source.path"] = str(Path(json.__file__).parent)
BLOCKS = {"model": "DiffusionLM", "model.objective": "BlockDiffusion", "model.objective.block_size": LENGTH + 1}
BLOCKS["model.objective.estimator"] = "count"
WHOLE = {"model": "DiffusionLM", "model.objective": "MaskedDiffusion", "model.objective.estimator": "count"}
BY_BLOCKS = {
    "trainer.callbacks": "WSDConversion",
    "trainer.callbacks.blocks": "[1,4,8,16,null]" if QUICK else "[1,4,32,64,null]",
    "trainer.callbacks.shares": "[0.2,0.2,0.2,0.2,0.2]" if QUICK else "[0.1,0.15,0.15,0.15,0.45]",
}
ANNEALED = {"trainer.callbacks": "AttentionAnnealing", "trainer.callbacks.steps": 0.5}
BEFORE = {"model.objective.logits_at": "before"}
TENTH = max(5, STEPS // 10)
ARMS = {
    "converted by blocks, N/10": (TENTH, {**BLOCKS, **BEFORE, **BY_BLOCKS}),
    "converted by annealing, N/10": (TENTH, {**WHOLE, **BEFORE, **ANNEALED}),
    "converted at once, N/10": (TENTH, {**WHOLE, **BEFORE}),
    "from scratch, N/10": (TENTH, WHOLE),
    "from scratch, N": (STEPS, WHOLE),
    "from scratch, 11N/10": (STEPS + TENTH, WHOLE),
}
AUTOREGRESSIVE = "autoregressive, N"


def run(*words: str) -> None:
    """A command of the package, silent; a failure ends the benchmark."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        status = command([str(word) for word in words])
    if status:
        sys.exit(f"lit-small-lm {' '.join(map(str, words))}: exit status {status}")


def trained(folder: Path, arm: str, seed: int, lr: float) -> Path:
    """The run directory of an arm; a converted one starts from the autoregressive run of its seed."""
    steps, own = ARMS.get(arm, (STEPS, {"model": "AutoregressiveLM"}))
    run_dir = folder / f"{arm.replace(' ', '_').replace('/', '-')}-{seed}-{lr}"
    options = {**own, **COMMON, "optim.lr": lr, "seed_everything": seed, "trainer.max_steps": steps}
    options |= {"trainer.val_check_interval": steps, "data.cache_dir": folder / "cache", "run_dir": run_dir}
    start = ["--init_from", folder / f"start-{seed}"] if arm.startswith("converted") else []
    started = time.monotonic()
    run("fit", *(word for key, value in options.items() for word in (f"--{key}", value)), *start)
    print(f"{run_dir.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return run_dir


def validated(run_dir: Path) -> float:
    """Bits per byte of the validation split at the end of a run; infinite where it diverged."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [line.get("val/bits_per_byte_bound", line.get("val/bits_per_byte")) for line in lines]
    return next(float(value) for value in reversed(found) if value is not None)


def tested(run_dir: Path) -> dict[str, float]:
    """Bits per byte of the test split, and the standard error over its documents."""
    few = ["--trainer.limit_test_batches", 1] if QUICK else []
    run("test", "--run_dir", run_dir, "--draws", DRAWS, *few)
    record = json.loads((run_dir / "test.json").read_text())
    name = "bits_per_byte" if record["likelihood"] == "exact" else "bits_per_byte_bound"
    return {"value": record[name], "error": record[f"{name}_standard_error"] or math.nan}


def tuned(folder: Path) -> dict[str, float]:
    """The best rate of each arm, by the validation split and a seed of their own."""
    rates = {}
    for arm in (AUTOREGRESSIVE, *ARMS):
        if arm == "from scratch, 11N/10":
            rates[arm] = rates["from scratch, N"]
            continue
        found = {lr: trained(folder, arm, TUNING, lr) for lr in GRID}
        rates[arm] = min(GRID, key=lambda lr, found=found: validated(found[lr]))
        if arm == AUTOREGRESSIVE:
            (folder / f"start-{TUNING}").symlink_to(found[rates[arm]])
    return rates


def error(values: list[float]) -> float | None:
    """Standard error of the mean; None for one value."""
    return round(statistics.stdev(values) / len(values) ** 0.5, 4) if len(values) > 1 else None


def summary(lr: float, found: list[dict[str, float]], scratch: list[dict[str, float]]) -> dict[str, object]:
    """One arm: its bits per byte by seed, their mean and errors, and what it has over the longest run from scratch."""
    values, documents = [entry["value"] for entry in found], [entry["error"] for entry in found]
    over = [value - other["value"] for value, other in zip(values, scratch, strict=True)]
    record = {"lr": lr, "by_seed": [round(value, 4) for value in values], "mean": round(statistics.mean(values), 4)}
    known = [value for value in documents if math.isfinite(value)]
    record |= {"seed_error": error(values), "document_error": round(statistics.mean(known), 4) if known else None}
    return {**record, "over_scratch": round(statistics.mean(over), 4), "over_scratch_error": error(over)}


def measured(folder: Path) -> dict[str, object]:
    """All arms, for all seeds."""
    rates, found = tuned(folder), {arm: [] for arm in (AUTOREGRESSIVE, *ARMS)}
    for seed in SEEDS:
        for arm in found:
            run_dir = trained(folder, arm, seed, rates[arm])
            if arm == AUTOREGRESSIVE:
                (folder / f"start-{seed}").symlink_to(run_dir)
            found[arm].append(tested(run_dir))
    table = {arm: summary(rates[arm], entries, found["from scratch, 11N/10"]) for arm, entries in found.items()}
    for key in ("over_scratch", "over_scratch_error"):
        del table[AUTOREGRESSIVE][key]  # an exact likelihood and a bound
    return table


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = measured(Path(folder))
    record = {"benchmark": "conversion", "unit": "bits per byte, upper bounds (autoregressive: exact)"}
    record |= {"tokens_N": STEPS * ROWS * LENGTH, "shape": SHAPE, "rows_a_step": ROWS, "row": LENGTH}
    record |= {"seeds": list(SEEDS), "grid": list(GRID), "draws": DRAWS, "table": table}
    print(json.dumps({**record, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
