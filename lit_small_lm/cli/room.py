"""Whether there is room for a run: a warning before it begins where memory or disk will not suffice.

What a run takes is what `plan` says of it. A warning is all that comes of it: an estimate never stops a run. Working it
out takes seconds for some families, so a bound is held against what is free first: small runs need no more than that.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from lit_small_lm.cli import checks, report
from lit_small_lm.cli.plan_table import size
from lit_small_lm.cli.plan_workload import vocabulary, workload_of
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.planning import counts
from lit_small_lm.planning.disk import disk
from lit_small_lm.planning.flops import flops
from lit_small_lm.planning.memory import training
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.workload import Workload
from lit_small_lm.training.lit import LanguageModule

BYTES_A_TOKEN = 3
"""Of text, taken low so that a store is rather too large than too small; bytes as tokens have one."""
FEW_IDS = 512
BYTES_A_WEIGHT = 64
"""More than a weight takes: itself, gradient, two moments, an average and what comes and goes, four bytes each."""


class Held(NamedTuple):
    """What a process holds, in bytes."""

    total: int
    weights: int
    optimizer: int


def warn(module: LanguageModule, data: TokenData, config: str, run_dir: Path | None) -> None:
    """Say on standard error what there is not enough room for.

    Args:
        module: what will be trained.
        data: its data, not yet read.
        config: the whole configuration, as YAML.
        run_dir: where the run goes; None: below runs/.
    """
    try:
        shortages = list(_shortages(module, data, config, run_dir or Path("runs")))
    except Exception:  # whatever is wrong with the run, it says itself; an estimate stops nothing
        return
    for text in shortages:
        report.say(f"warning: {text}")


def _shortages(module: LanguageModule, data: TokenData, config: str, run_dir: Path) -> Iterator[str]:
    tree = yaml.safe_load(config)
    workload = workload_of(tree, None, module.objective)
    ids, _ = vocabulary(tree["data"])
    dims = module.shape.resolve(lambda dims: counts.size(Outline(module.backbone, dims, ids)))
    outline = Outline(module.backbone, dims, ids)
    short: list[str] = []
    for estimate in (_bound, _worked_out):
        held = estimate(outline, workload)
        short = [*_memory(held, workload, tree["trainer"]["num_nodes"]), *_disk(held, workload, ids, data, run_dir)]
        if not short:
            break
    yield from short


def _bound(outline: Outline, workload: Workload) -> Held:
    """More than the run takes, found without going through a step: a byte for each operation of the step, since a
    number that it keeps costs a dozen or more (two for every row of the matrix that made it, training three times)."""
    counted = counts.parameters(outline)
    operations = flops(outline, counted, workload.seq_len, workload.objective).training_per_token
    step = operations * workload.seq_len * workload.rows
    return Held(step + counted.total * BYTES_A_WEIGHT, counted.total * 4, counted.total * 12)


def _worked_out(outline: Outline, workload: Workload) -> Held:
    found = training(outline, workload)
    return Held(found.total_bytes, found.weights_bytes * workload.shards, found.optimizer_bytes * workload.shards)


def _memory(held: Held, workload: Workload, nodes: int) -> Iterator[str]:
    count = 1 if workload.accelerator == "cuda" else max(1, workload.processes // nodes)
    free = _free(workload)
    if free is not None and count * held.total > free:
        each = f" on each of {count} processes" if count > 1 else ""
        yield (
            f"training will take about {size(held.total)} of memory{each}, {size(free)} are free; less is needed "
            "with a smaller data.micro_batch_size or activation_checkpointing layers (lit-small-lm plan says more)"
        )


def _free(workload: Workload) -> int | None:
    if workload.accelerator == "cuda":
        return torch.cuda.mem_get_info()[0]
    return checks.free_memory()


def _disk(held: Held, workload: Workload, ids: int, data: TokenData, run_dir: Path) -> Iterator[str]:
    found = disk(workload, ids, held.weights, held.optimizer)
    store = 0
    if data.store is None and data.reading == "prepared":
        text = sum(part.size for component in data.source.components() for part in component.source.parts())
        store = text // (1 if ids <= FEW_IDS else BYTES_A_TOKEN) * found.token_bytes
    wanted: dict[Path, list[tuple[str, int]]] = {}
    for what, place, count in (
        ("checkpoints", run_dir, found.checkpoints_bytes or 0),
        ("the token store, if it is not there yet,", data.cache, store),
    ):
        wanted.setdefault(_existing(place), []).append((what, count))
    for place, parts in wanted.items():
        free, total = shutil.disk_usage(place).free, sum(count for _, count in parts)
        if total > free:
            listed = " and ".join(f"{what} about {size(count)}" for what, count in parts if count)
            yield f"{place}: {listed}; {size(free)} are free"


def _existing(path: Path) -> Path:
    """The part of a path that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
