"""How much each estimator of the diffusion loss scatters: the deviation of a step's loss over draws of noise.

    python benchmarks/estimators.py [--quick] [--runs FOLDER]

prints one JSON line. The text of a step is held fixed, so that what scatters is the noise alone: for masked and block
diffusion, for a network with random weights and for a trained one (configs/pretrain/diffusion_mini.yaml, with blocks
and without, trained first unless FOLDER, by default runs/estimators, holds them). `deviation` is the standard deviation
of the loss of a step in nats a token, pooled over batches of text; `error` is its own standard error, by the fourth
moment; `mean` is the mean loss, which estimators must agree on. "1 + 9t" is the network of docs/objectives.md, which
says so many nats at mask rate t. "complementary" asks about each row twice.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from lit_small_lm import load
from lit_small_lm.checkpoint import LanguageModel
from lit_small_lm.data.cache import default_cache
from lit_small_lm.data.corpus import prepared
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.objectives.denoising import Denoising
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.masking import Estimator
from lit_small_lm.plugin import Batch, Query, Specials, Tokenizer

MINI = Path(__file__).parents[1] / "configs" / "pretrain" / "diffusion_mini.yaml"
MODELS = {"masked": ["--model.objective=MaskedDiffusion"], "blocks": []}
TINY = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
ESTIMATORS = get_args(Estimator)
SHAPES = [(8, 256), (32, 256), (8, 1024), (32, 1024)]
"""Rows and positions for "1 + 9t"."""


def trained(folder: Path, name: str, quick: bool) -> LanguageModel:
    """A model of the folder; trained now if it is not there."""
    if not (folder / name / "checkpoints").is_dir():
        command = [sys.executable, "-m", "lit_small_lm", "fit", "-c", str(MINI), f"--run_dir={folder / name}"]
        subprocess.run([*command, *MODELS[name], *(TINY if quick else [])], check=True, stdout=sys.stderr)
    return load(folder / name)


def batches(model: LanguageModel, count: int, rows: int = 8, length: int = 128) -> list[Batch]:
    """Steps of held-out text: every row is a piece of the test files, begun as a document is."""
    tokenizer, specials = Tokenizer.from_dict(model.record["tokenizer"]["spec"]), model.encoder.specials
    (stream,) = prepared(TextFiles(), tokenizer, model.encoder, default_cache(), None).streams("test")
    starts = torch.linspace(1, stream.length - length - 1, count * rows).long().tolist()
    text = torch.tensor([stream.read(at, at + length).tolist() for at in starts])
    text = torch.cat([torch.full((len(text), 1), specials.start), text], dim=1).chunk(count)  # (rows, length+1) each
    return [batch_of(part, specials) for part in text]


def batch_of(tokens: Tensor, specials: Specials) -> Batch:
    """One document a row."""
    index = torch.arange(len(tokens))
    return Batch(tokens, index.unsqueeze(1).expand(tokens.shape).clone(), None, index, index, specials)


def losses(ask: Callable[[Query], Tensor], objective: Denoising, steps: list[Batch], draws: int) -> Tensor:
    """(batches, draws) the loss of each step, in nats a token; no two of them have the same noise."""
    found = []
    for number, batch in enumerate(steps):
        queries = (objective.query(batch, (number, draw)) for draw in range(draws))
        found.append([(ask(query) * query.weights).sum().item() / query.count.sum().item() for query in queries])
    return torch.tensor(found, dtype=torch.float64)


def scatter(found: Tensor) -> dict[str, float]:
    """What is said of losses (batches, draws)."""
    off = found - found.mean(1, keepdim=True)
    count, freedom = off.numel(), off.numel() - len(off)
    variance = off.square().sum().item() / freedom
    fourth = off.pow(4).mean().item()
    spread = max(0.0, fourth - variance**2 * (count - 3) / (count - 1)) / count
    deviation = math.sqrt(variance)
    error = math.sqrt(spread) / (2 * deviation) if deviation else 0.0
    return {
        "deviation": float(f"{deviation:.3g}"),
        "error": float(f"{error:.2g}"),
        "mean": round(found.mean().item(), 4),
    }


def of_network(net: torch.nn.Module, objective: Denoising, steps: list[Batch], draws: int) -> dict[str, object]:
    """Every estimator, for a network."""

    @torch.no_grad()
    def ask(query: Query) -> Tensor:
        return net(query.tokens, query.context(), query.targets, query.scored)

    return {name: scatter(losses(ask, replace(objective, estimator=name), steps, draws)) for name in ESTIMATORS}


def of_rising_loss(rows: int, length: int, draws: int) -> dict[str, object]:
    """Every estimator, for a network that says 1 + 9t nats: where the noise is linear, a weight is 1/t."""
    batch = batch_of(torch.full((rows, length + 1), 3), Specials(4, end=0, pad=1, mask=2))
    objectives = {name: MaskedDiffusion(estimator=name) for name in ESTIMATORS}
    return {
        name: scatter(losses(lambda query: 1 + 9 / query.weights, objective, [batch], draws))
        for name, objective in objectives.items()
    }


def measure(folder: Path, quick: bool) -> dict[str, object]:
    count, draws = (1, 4) if quick else (6, 100)
    record: dict[str, object] = {"batches": count, "draws": draws, "rows": 8, "positions": 128}
    for name in MODELS:
        model = trained(folder, name, quick)
        steps = batches(model, count)
        record[f"{name}, trained"] = of_network(model.net, model.objective, steps, draws)
        torch.manual_seed(0)
        model.net.init_weights()
        record[f"{name}, random"] = of_network(model.net, model.objective, steps, draws)
    for rows, length in SHAPES[:1] if quick else SHAPES:
        record[f"1 + 9t, {rows} rows of {length}"] = of_rising_loss(rows, length, 4 if quick else 200)
    return record


def main() -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="barely trained models, a few draws")
    parser.add_argument("--runs", type=Path, default=Path("runs/estimators"), help="where the models are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            record = measure(Path(folder), quick=True)
    else:
        record = measure(args.runs, quick=False)
    machine = {"threads": 1, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    print(json.dumps({"benchmark": "estimators", **record, **machine}))


if __name__ == "__main__":
    main()
