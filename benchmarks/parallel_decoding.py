"""Speed against quality: block diffusion at 1 to 16 tokens an evaluation beside autoregressive decoding with its cache.

    python benchmarks/parallel_decoding.py [--quick] [--runs FOLDER]

trains a pair of models on the built-in corpus (or takes those in FOLDER, by default runs/parallel_decoding): the demo's
autoregressive one, and from its weights block diffusion with blocks of 16 on as many tokens again. Every way then
continues held-out texts, eager and compiled, all ways in turn, and one JSON line is printed. For each batch size and
way

- `tokens_an_evaluation` of the network, for each row: what was done of what was asked for;
- `speed`: the median over rounds of tokens per second of processor time, in one thread, all rows together; `times` that
  of autoregressive decoding run the same way, and `times_eager` that of eager autoregressive decoding;
- `break_even`: tokens an evaluation from which filling is as fast as autoregressive decoding, by interpolation.

and, over the texts of the largest batch size, for each way
- `perplexity` of what it wrote to the autoregressive model, given the prompt, and its standard error over texts;
- `entropy` of one text's tokens by their frequency in it (nats), and `distinct_2`, the share of pairs of neighbouring
  tokens that occur once: a low perplexity is worth nothing where these fall. `held out` is what really follows there.

No way may end a text, so that all draw as many tokens. Draws are at temperature 1.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lit_small_lm import load
from lit_small_lm.checkpoint import LanguageModel
from lit_small_lm.context import Context, Visibility
from lit_small_lm.data.cache import default_cache
from lit_small_lm.data.corpus import prepared
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.plugin import Sampler, Tokenizer
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.samplers.threshold import ConfidenceThreshold

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
BLOCK, PROMPT = 16, 32
PAIR = {
    "autoregressive": [],
    "blocks": ["--model=DiffusionLM", "--model.objective=BlockDiffusion", f"--model.objective.block_size={BLOCK}",
               "--model.objective.logits_at=before", "--optim.lr=0.003"],
}  # fmt: skip
TINY = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1",
        "--data.batch_size=2", "--data.tokenizer=Bytes", f"--data.source.path={Path(__file__).parent}",
        "--model.shape.dim=16", "--model.shape.n_layers=1", "--model.shape.n_heads=2"]  # fmt: skip


class Way(NamedTuple):
    """A model and a sampler for it."""

    model: str
    sampler: Sampler
    asked: float | None
    """Tokens an evaluation asked for; None: as many as there are certain ones."""


WAYS = {
    "autoregressive": Way("autoregressive", Autoregressive(), 1),
    **{f"blocks {k}": Way("blocks", LowConfidence(tokens=k), k) for k in (1, 2, 4, 8, 16)},
    **{f"blocks > {p}": Way("blocks", ConfidenceThreshold(threshold=p), None) for p in (0.9, 0.5)},
}


class Endless:
    """A network that never ends a text."""

    def __init__(self, net: torch.nn.Module, end: int) -> None:
        self.net, self.end = net, end

    def __call__(self, *args, **kwargs) -> Tensor:
        logits = self.net(*args, **kwargs)
        logits[..., self.end] = -1e4
        return logits


class Drawn(NamedTuple):
    """A way's texts of one round."""

    tokens: Tensor
    """(B, PROMPT + n)"""
    speed: float
    """Tokens per processor second, all rows together."""
    nfe: int


def trained(folder: Path, quick: bool) -> dict[str, LanguageModel]:
    """The pair; what is not in the folder yet is trained."""
    for name, options in PAIR.items():
        if not (folder / name / "checkpoints").is_dir():
            start = [] if name == "autoregressive" else [f"--init_from={folder / 'autoregressive'}"]
            command = [sys.executable, "-m", "lit_small_lm", "fit", "-c", str(DEMO), f"--run_dir={folder / name}"]
            subprocess.run([*command, *options, *start, *(TINY if quick else [])], check=True, stdout=sys.stderr)
    return {name: load(folder / name) for name in PAIR}


def held_out(source: TextFiles, model: LanguageModel, n: int, count: int) -> Tensor:
    """(count, PROMPT + n) pieces of the test files, each begun as a document is; evenly spread over them."""
    tokenizer = Tokenizer.from_dict(model.record["tokenizer"]["spec"])
    (stream,) = prepared(source, tokenizer, model.encoder, default_cache(), None).streams("test")
    starts = torch.linspace(1, stream.length - PROMPT - n - 1, count).long().tolist()
    rows = torch.tensor([stream.read(at, at + PROMPT + n - 1).tolist() for at in starts])
    specials = model.encoder.specials
    rows = torch.cat([torch.full((count, 1), specials.start), rows], dim=1)
    return rows.masked_fill(rows == specials.end, specials.start)


def drawn(way: Way, model: LanguageModel, net: torch.nn.Module, prompt: Tensor, n: int, key: int) -> Drawn:
    specials = model.encoder.specials
    frames = way.sampler.frames(Endless(net, specials.end), prompt, n, key, specials, model.objective.decoding())
    started = time.process_time()
    *_, last = frames
    return Drawn(last.tokens, prompt.shape[0] * n / (time.process_time() - started), last.nfe)


def rounds(
    models: dict[str, LanguageModel],
    ways: dict[str, Way],
    texts: Tensor,
    batch: int,
    n: int,
    count: int,
    backend: str,
) -> Iterator[dict[tuple[str, str], Drawn]]:
    """Rounds in which every way draws once, eager and compiled; an unmeasured one comes first."""
    torch.compiler.reset()
    nets = {"eager": {name: model.net for name, model in models.items()}}
    nets["compiled"] = {name: torch.compile(model.net, dynamic=True, backend=backend) for name, model in models.items()}
    for number in range(-1, count):
        at = max(number, 0) * batch
        prompt = texts[at : at + batch, :PROMPT]
        found = {
            (name, how): drawn(way, models[way.model], nets[how][way.model], prompt, n, number)
            for name, way in ways.items()
            for how in nets
        }
        if number >= 0:
            yield found


def speeds(found: list[dict[tuple[str, str], Drawn]], n: int) -> dict[str, dict[str, object]]:
    """By way, eager and compiled: medians over rounds."""
    median = {case: torch.tensor([r[case].speed for r in found]).median().item() for case in found[0]}
    table: dict[str, dict[str, object]] = {}
    for (name, how), speed in median.items():
        evaluations = sum(r[name, how].nfe for r in found) / len(found)
        table.setdefault(name, {"tokens_an_evaluation": round(n / evaluations, 2)})[how] = {
            "speed": round(speed, 1),
            "times": round(speed / median["autoregressive", how], 2),
            "times_eager": round(speed / median["autoregressive", "eager"], 2),
        }
    for how in ("eager", "compiled"):
        points = [(row["tokens_an_evaluation"], row[how]["times"]) for name, row in table.items() if is_fixed(name)]
        table["autoregressive"][how]["break_even"] = break_even(points)
    return table


def pairs_of(found: dict[tuple[str, str], Drawn], name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The texts of a way, eager and compiled."""
    return zip(found[name, "eager"].tokens, found[name, "compiled"].tokens, strict=True)


def is_fixed(name: str) -> bool:
    return WAYS[name].model == "blocks" and WAYS[name].asked is not None


def break_even(points: list[tuple[float, float]]) -> float | None:
    """Tokens an evaluation from which filling is as fast as autoregressive decoding, between those measured."""
    points = sorted(points)
    if points[0][1] >= 1:
        return points[0][0]
    for (few, slow), (many, fast) in zip(points, points[1:], strict=False):
        if fast >= 1:
            return round(few + (many - few) * (1 - slow) / (fast - slow), 2)
    return None


@torch.no_grad()
def quality(judge: LanguageModel, tokens: Tensor) -> dict[str, float]:
    """Of texts (B, PROMPT + n), what follows the prompts."""
    nll = judge.net(tokens[:, :-1], Context(Visibility.rows(tokens[:, :-1])), tokens[:, 1:])[:, PROMPT - 1 :].double()
    means, new = nll.mean(1), tokens[:, PROMPT:]
    perplexity = means.mean().exp().item()
    counts = torch.nn.functional.one_hot(new, judge.encoder.specials.vocab_size).sum(1) / new.shape[1]  # (B, V)
    pairs = [len(set(zip(row[:-1], row[1:], strict=True))) / (len(row) - 1) for row in new.tolist()]
    entropies = torch.special.entr(counts.double()).sum(-1)
    return {
        "perplexity": round(perplexity, 2),
        "perplexity_standard_error": round(perplexity * error_of(means), 2),
        "entropy": round(entropies.mean().item(), 3),
        "entropy_standard_error": round(error_of(entropies), 3),
        "distinct_2": round(sum(pairs) / len(pairs), 3),
    }


def error_of(values: Tensor) -> float:
    """The standard error of a mean."""
    return (values.std() / len(values) ** 0.5).item()


def figures(folder: Path) -> dict[str, object]:
    """What the last validation of each run said."""
    found = {}
    for name in PAIR:
        lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
        scores = [line for line in lines if any(key.startswith("val/") for key in line)][-1]
        found[name] = {key: round(float(value), 4) for key, value in scores.items() if "bits_per_byte" in key}
    return found


def main() -> None:
    """Train what is missing, measure every batch size, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, two texts")
    parser.add_argument("--runs", type=Path, default=Path("runs/parallel_decoding"), help="where the models are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            record = measure(Path(folder), quick=True, n=BLOCK, batches=[2], count=1)
    else:
        record = measure(args.runs, quick=False, n=96, batches=[1, 4, 16], count=5)
    print(json.dumps(record))


def measure(folder: Path, quick: bool, n: int, batches: list[int], count: int) -> dict[str, object]:
    models = trained(folder, quick)
    ways = {name: way for name, way in WAYS.items() if not quick or way.asked in (1, 4, 16)}
    source = TextFiles(path=str(Path(__file__).parent) if quick else None)
    texts = held_out(source, models["autoregressive"], n, batches[-1] * count)
    table, last = {}, []
    for batch in batches:
        last = list(rounds(models, ways, texts, batch, n, count, "eager" if quick else "inductor"))
        table[f"batch {batch}"] = speeds(last, n)
        print(json.dumps({f"batch {batch}": table[f"batch {batch}"]}), file=sys.stderr, flush=True)
    same = [torch.equal(a, b) for r in last for name in ways for a, b in pairs_of(r, name)]
    judge = models["autoregressive"]
    written = {name: quality(judge, torch.cat([r[name, "eager"].tokens for r in last])) for name in ways}
    written["held out"] = quality(judge, texts)
    machine = {"threads": 1, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    return {
        "benchmark": "parallel_decoding", "unit": "tokens per processor second", "block_size": BLOCK,
        "prompt": PROMPT, "new": n, "rounds": count, "texts": len(texts), **machine,
        "models": figures(folder), "speed": table, "text": written,
        "texts_equal_when_compiled": round(sum(same) / len(same), 4),
    }  # fmt: skip


if __name__ == "__main__":
    main()
