"""One GPU in bfloat16: training, objectives, masks, memory and generation, one JSON line each, in about eight minutes.

    python benchmarks/gpu.py [PART ...] [--seconds 420] [--quick]

Parts: ceilings train compile objectives documents memory decoding diffusion. Tokens are random, which costs what text
costs. Steps are timed between events of the device, the median of them; shares of the peak are of the maker's dense
bfloat16 figure, operations are counted by `planning.flops`. `--seconds` is what all parts may take: those that would
begin later are left out, and said to be. `--quick` runs tiny shapes, on a CPU too: a check of the script, no figures.
"""

import argparse
import dataclasses
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from measuring.record import place

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.batch import Batch, Decoding, Specials
from lit_small_lm.context import Visibility
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.devices import detected
from lit_small_lm.planning.flops import flops
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Objective, Sampler
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.compiled import compile_network
from lit_small_lm.training.gradients import scale_gradients, total_norm
from lit_small_lm.training.optim import AdamW

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
VOCAB = 50304
GPT2 = BackboneSpec(
    norm=PreNorm(norm=LayerNorm()),
    layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
    positions=Learned(length=2048),
)


class Case(NamedTuple):
    """A family, its shape, and the rows of a step."""

    spec: BackboneSpec
    shape: FixedShape
    rows: int
    length: int
    vocab: int = VOCAB


CASES = {
    "gpt2-124m": Case(GPT2, FixedShape(dim=768, n_layers=12, n_heads=12, n_kv_heads=12, hidden=3072), 64, 1024),
    "llama-124m": Case(
        BackboneSpec(), FixedShape(dim=768, n_layers=12, n_heads=12, n_kv_heads=12, hidden=2048), 32, 1024
    ),
    "deep-32x384": Case(
        BackboneSpec(), FixedShape(dim=384, n_layers=32, n_heads=6, n_kv_heads=3, hidden=1024), 128, 1024
    ),
}
TINY = FixedShape(dim=32, n_layers=2, n_heads=2, n_kv_heads=1, hidden=64)


def case(name: str) -> Case:
    """One of `CASES`; tiny where a quick run is asked for."""
    found = CASES[name]
    return found if not QUICK else found._replace(shape=TINY, rows=2, length=32, vocab=64)


QUICK = False


# ------------------------------------------------------------------------------------------------------------ training
class Training:
    """Steps of one network under one objective, as `fit` takes them: autocast, fused AdamW, gradients clipped to 1.

    Rows hold so many documents that do not see each other; None: rows are read as one text, without a mask.
    """

    def __init__(
        self,
        found: Case,
        objective: Objective,
        mode: str = "off",
        documents: int | None = 1,
        attention: str = "fastest",
    ) -> None:
        torch.compiler.reset()
        self.case, self.objective, self.documents, self.attention = found, objective, documents, attention
        dims = found.shape.resolve()
        self.net = Backbone(found.spec, dims, found.vocab).to(DEVICE)
        self.optimizer = AdamW().build(list(self.net.named_roles()), fused=True)
        compile_network(self.net, mode if CUDA else "off")
        self.batches = [self._batch(documents or 1) for _ in range(4)]
        self.count = 0

    def _batch(self, documents: int) -> Batch:
        rows, length, vocab = self.case.rows, self.case.length, self.case.vocab
        tokens = torch.randint(3, vocab, (rows, length + 1), device=DEVICE)
        cuts = torch.rand(rows, length + 1, device=DEVICE).argsort(1) < documents - 1
        docs = cuts.cumsum(1) + documents * torch.arange(rows, device=DEVICE).unsqueeze(1)  # (B, T+1)
        slots = torch.arange(rows, device=DEVICE)
        return Batch(tokens, docs, None, slots, slots, Specials(vocab, end=0, pad=1, mask=2))

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        self.count += 1
        query = self.objective.query(self.batches[self.count % 4], (0, self.count))
        if self.documents is None:
            query = dataclasses.replace(query, visibility=Visibility.rows(query.tokens))
        with torch.autocast(DEVICE.type, torch.bfloat16):
            ctx = dataclasses.replace(query.summed(torch.tensor(self.count)), attention=self.attention)
            self.net(query.tokens, ctx, query.targets, query.scored)
        (ctx.trace.nats / (self.case.rows * self.case.length)).backward()
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        scale_gradients(gradients, (1.0 / (total_norm(gradients) + 1e-6)).clamp(max=1))
        self.optimizer.step()

    def measured(self, steps: int = 12) -> dict[str, object]:
        """Milliseconds of a step, tokens a second, share of the device's peak, memory, seconds of the first steps."""
        began = time.perf_counter()
        for _ in range(4):  # diffusion has steps of several shapes
            self.step()
        synchronize()
        first = time.perf_counter() - began
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        times = [timed(self.step) for _ in range(2 if QUICK else steps)]
        tokens = self.case.rows * self.case.length
        rate = 1000 * tokens / statistics.median(times)
        return {
            "step_ms": round(statistics.median(times), 2),
            "step_ms_range": [round(min(times), 2), round(max(times), 2)],
            "tokens_per_second": round(rate),
            **self._share(rate),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if CUDA else None,
            "first_steps_s": round(first, 1),
        }

    def _share(self, rate: float) -> dict[str, object]:
        outline = Outline(self.case.spec, self.case.shape.resolve(), self.case.vocab)
        counted = flops(outline, parameters(outline), self.case.length, self.objective).training_per_token
        known = detected(torch.cuda.get_device_name()) if CUDA else None
        share = None if known is None else round(rate * counted / known.peaks["bf16"], 4)
        return {"flops_per_token": round(counted), "utilisation": share}


def train() -> Iterator[dict[str, object]]:
    """Next-token training, rows read as one text; bars: 0.40 of the peak for GPT-2, 0.30 for the deep network."""
    for name, mode in (("gpt2-124m", "default"), ("deep-32x384", "layers")):
        yield {"case": name, "compile": mode, **Training(case(name), NextToken(), mode, documents=None).measured()}


def compiling() -> Iterator[dict[str, object]]:
    """What compilation gains, and what it costs before the first step."""
    for name, modes in (("gpt2-124m", ("off", "layers")), ("deep-32x384", ("off", "default"))):
        for mode in modes:
            yield {"case": name, "compile": mode, **Training(case(name), NextToken(), mode, documents=None).measured()}


def objectives() -> Iterator[dict[str, object]]:
    """Diffusion beside next-token prediction on the same rows; the bar for block diffusion is twice the step."""
    found, base = case("llama-124m"), None
    asked = {"next token": NextToken(), "masked diffusion": MaskedDiffusion(), "block diffusion": BlockDiffusion()}
    for name, objective in asked.items():
        figures = Training(found, objective, "layers").measured()
        base = base or figures["step_ms"]
        yield {"objective": name, "ratio_to_next_token": round(figures["step_ms"] / base, 2), **figures}


def documents() -> Iterator[dict[str, object]]:
    """Packed rows of 8 documents by FlexAttention and with the dense mask, its plain twin; and read as one text."""
    for way, count in (("fastest", None), ("fastest", 8), ("dense", 8)):
        figures = Training(case("llama-124m"), NextToken(), "layers", documents=count, attention=way).measured()
        yield {"attention": way, "documents_per_row": count, **figures}


def memory() -> Iterator[dict[str, object]]:
    """What activation checkpointing saves and costs."""
    for kept in ("off", "layers"):
        training = Training(case("gpt2-124m"), NextToken(), documents=None)
        for layer in training.net.layers:
            layer.activation_checkpointing = kept
        yield {"case": "gpt2-124m", "activation_checkpointing": kept, **training.measured(4)}


# ---------------------------------------------------------------------------------------------------------- generation
def decoding() -> Iterator[dict[str, object]]:
    """Left to right with a cache, greedy; the bar at batch 1 is half of what reading the weights once allows."""
    found = case("gpt2-124m")
    net, rate = network(found), copied()
    least = 1000 * sum(p.numel() * p.element_size() for p in net.parameters()) / rate  # ms a token
    for how in ("eager", "graph", "compiled") if CUDA else ("eager",):
        for rows in (1, 8, 64):
            sampler = Autoregressive(temperature=0, step=how)
            figures = generated(net, found, sampler, rows, Decoding(("causal",)))
            share = round(least / figures["ms_per_forward"], 3)
            yield {"sampler": "Autoregressive", "step": how, **figures, "share_of_bandwidth_limit": share}


def diffusion() -> Iterator[dict[str, object]]:
    """Blocks of 32 with a cache, 1 to 8 tokens a forward; `decoding` is what to hold them against."""
    found = case("gpt2-124m")
    net = network(found)
    for rows in (1, 8, 64):
        for tokens in (1, 4, 8):
            sampler = LowConfidence(tokens=tokens)
            figures = generated(net, found, sampler, rows, Decoding(("block",), 32))
            yield {"sampler": "LowConfidence", "tokens_per_forward": tokens, **figures}


def network(found: Case) -> Backbone:
    """Random weights in bfloat16, without gradients."""
    torch.compiler.reset()
    net = Backbone(found.spec, found.shape.resolve(), found.vocab).to(DEVICE, torch.bfloat16)
    return net.eval().requires_grad_(False)


def generated(net: Backbone, found: Case, sampler: Sampler, rows: int, decoding: Decoding) -> dict[str, object]:
    """Tokens a second over all rows, in the second half of a text; its first half warms up."""
    given, new = (8, 16) if QUICK else (32, 256)
    prompt = torch.randint(3, found.vocab, (rows, given), device=DEVICE)
    specials = Specials(found.vocab, end=0, pad=1, mask=2)
    frames = iter(sampler.frames(net, prompt, new, 0, specials, decoding))
    evaluations = new if isinstance(sampler, Autoregressive) else -(-new // sampler.tokens)
    first = [next(frames) for _ in range(evaluations // 2)][-1]
    synchronize()
    began = time.perf_counter()
    last = list(frames)[-1]
    synchronize()
    seconds, nfe = time.perf_counter() - began, last.nfe - first.nfe
    drawn = new * (1 - first.nfe / last.nfe)
    return {
        "rows": rows,
        "tokens_per_second": round(rows * drawn / seconds, 1),
        "ms_per_forward": round(1000 * seconds / nfe, 4),
        "forwards": nfe,
    }


# ----------------------------------------------------------------------------------------------------------- measuring
def ceilings() -> Iterator[dict[str, object]]:
    """What the device does at best: a product of bfloat16 matrices, and a copy, read and write counted."""
    size = 256 if QUICK else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    ms = statistics.median(timed(lambda: a @ b) for _ in range(10))
    yield {"matmul_tflops": round(2 * size**3 / ms / 1e9, 1), "copy_gb_per_second": round(copied() / 1e9, 1)}


def copied() -> float:
    """Bytes a second of a large copy, read and write counted."""
    source = torch.randn(1 << (16 if QUICK else 30), device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    ms = statistics.median(timed(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.numel() * source.element_size() / ms * 1000


def timed(work: Callable[[], object]) -> float:
    """Milliseconds between events of the device around some work; of a CPU, of wall time."""
    if not CUDA:
        began = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def synchronize() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


PARTS = {
    "ceilings": ceilings, "train": train, "objectives": objectives, "documents": documents, "diffusion": diffusion,
    "memory": memory, "decoding": decoding, "compile": compiling,
}  # fmt: skip


def main() -> None:
    """Run the parts asked for; a part that fails is a line that says why, and the others run."""
    global QUICK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which no further part begins")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, on any device: a check of this script")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: no part; known: {', '.join(PARTS)}")
    if not CUDA and not asked.quick:
        parser.error("no CUDA device; --quick runs tiny shapes without one")
    QUICK, began = asked.quick, time.perf_counter()
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name() if CUDA else "cpu"
    for part in asked.parts or PARTS:
        for figures in until(PARTS[part](), began + asked.seconds):
            print(json.dumps({"benchmark": f"gpu {part}", "device": name, **figures, **place()}), flush=True)


def until(lines: Iterator[dict[str, object]], deadline: float) -> Iterator[dict[str, object]]:
    """The lines, as long as there is time; what fails is a line, too."""
    while time.perf_counter() < deadline:
        try:
            yield next(lines)
        except StopIteration:
            return
        except Exception as error:
            text = str(error).splitlines() or [""]
            yield {"failed": type(error).__name__, "message": text[0][:300], "trace": traceback.format_exc()[-1500:]}
            return
    yield {"left_out": "no time left"}


if __name__ == "__main__":
    main()
