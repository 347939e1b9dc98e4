"""Training steps against transformers' Llama of the same shape, each way of training in a process of its own, in turn.

    python benchmarks/training_step.py [--shape S1|S2] [--peers NAME ...] [--rounds N] [--steps N] [--quick]

prints one JSON line; needs the extra [hf]. All train in float32 with fused AdamW and gradients clipped at norm 1:

    loop          transformers' model in a plain loop, the unit of the ratios; loop_compiled
    bare          this package's network in a plain loop; bare_compiled
    fit           `lit-small-lm fit` with logger and checkpoints as they are by default; fit_compiled
    loop_masked   transformers' model, seen both ways, head and loss at every position and weighted by the mask
    masked        this package's masked diffusion; block: its block diffusion, in blocks of 16

Rates are of tokens of text. GFLOP/s are those that the package counts for the network, over processor time.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import Clock, busy_beside, in_turn, machine, matmul_rate, medians, peak_mb, steps_between
from torch import Tensor
from torch.nn import functional as F

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.batch import Batch, Specials
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.flops import flops
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Objective
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.score import weighted_sum


@dataclass(frozen=True)
class Case:
    """A network, and the rows of a step."""

    shape: FixedShape
    vocab: int
    rows: int
    length: int


CASES = {
    "S1": Case(FixedShape(dim=256, n_layers=8, n_heads=8, hidden=688), 4096, 8, 256),
    "S2": Case(FixedShape(dim=384, n_layers=32, n_heads=8, n_kv_heads=4, hidden=1024), 50304, 4, 256),
    "tiny": Case(FixedShape(dim=16, n_layers=1, n_heads=2, hidden=32), 512, 2, 16),
}
OBJECTIVES: dict[str, Objective] = {
    "bare": NextToken(), "masked": MaskedDiffusion(), "block": BlockDiffusion(block_size=16),
}  # fmt: skip
PEERS = ("loop", "bare", "fit", "loop_masked", "masked", "block", "loop_compiled", "bare_compiled", "fit_compiled")
MASK = 2
WARM = 2
"""Steps that are not counted; compilation and the optimizer's state come with the first."""
Loss = Callable[[Tensor, int], Tensor]
"""Of tokens (B, T + 1) at a step."""


def theirs(case: Case, masked: bool, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    """transformers' Llama, for the next token or for masked ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = case.shape
    config = LlamaConfig(
        vocab_size=case.vocab, hidden_size=shape.dim, num_hidden_layers=shape.n_layers, intermediate_size=shape.hidden,
        num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads or shape.n_heads,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    if compiled:
        net.compile()

    def next_token(tokens: Tensor, step: int) -> Tensor:
        row, target = tokens[:, :-1], tokens[:, 1:].contiguous()
        return net(input_ids=row, labels=row, shift_labels=target).loss

    def restored(tokens: Tensor, step: int) -> Tensor:
        row = tokens[:, 1:]
        chance = torch.rand(len(row), 1).clamp(min=0.05)  # (B, 1)
        hidden = torch.rand(row.shape) < chance  # (B, T)
        every = torch.zeros(len(row), 1, row.shape[1], row.shape[1])  # (B, 1, T, T), added to the scores: all are seen
        logits = net(input_ids=row.masked_fill(hidden, MASK), attention_mask=every, use_cache=False).logits
        nll = F.cross_entropy(logits.flatten(0, 1), row.flatten(), reduction="none").view_as(row)  # (B * T,) -> (B, T)
        return (nll * hidden / chance).mean()

    return net, restored if masked else next_token


def ours(case: Case, objective: Objective, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    """This package's Llama, asked as a training module asks it."""
    net = Backbone(BackboneSpec(), case.shape.resolve(), case.vocab)
    net.init_weights()
    if compiled:
        net.compile()

    def loss(tokens: Tensor, step: int) -> Tensor:
        numbers = torch.arange(len(tokens))
        specials = Specials(vocab_size=case.vocab, end=0, pad=1, mask=MASK)
        batch = Batch(tokens, numbers[:, None].expand_as(tokens), None, numbers, numbers, specials)
        query = objective.query(batch, (0, step))
        nll = net(query.tokens, query.context(torch.tensor(step)), query.targets, query.scored)
        return weighted_sum(nll, query) / tokens[:, 1:].numel()

    return net, loss


def looped(net: torch.nn.Module, loss: Loss, case: Case, steps: int) -> list[Clock]:
    """Train in a plain loop; the moments after the warm steps and after every further one."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    torch.manual_seed(0)
    batches = torch.randint(3, case.vocab, (WARM + steps, case.rows, case.length + 1))
    moments = []
    for step, tokens in enumerate(batches):
        loss(tokens, step).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moments.append(Clock.now())
    return moments[WARM - 1 :]


def fitted(case: Case, compiled: bool, steps: int) -> list[Clock]:
    """Train from the command line, in this process; the moments as in `looped`."""
    from lit_small_lm.__main__ import main as command
    from lit_small_lm.training.callbacks.step_metrics import StepMetrics

    moments, original = [], StepMetrics.on_train_batch_end

    def timed(self, *arguments) -> None:
        original(self, *arguments)
        moments.append(Clock.now())

    StepMetrics.on_train_batch_end = timed
    shape = case.shape
    sizes = {"dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "hidden": shape.hidden}
    sizes |= {} if shape.n_kv_heads is None else {"n_kv_heads": shape.n_kv_heads}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        text = Path(folder) / "text"
        text.mkdir()
        for number, name in enumerate(("argparse", "typing", "inspect", "tarfile", "datetime", "pickle")):
            source = Path(os.__file__).parent / f"{name}.py"
            (text / f"{number}.txt").write_text(source.read_text())
        command([
            "fit", "--model", "AutoregressiveLM", "--data.source.path", str(text), "--run_dir", f"{folder}/run",
            "--data.tokenizer", "BPE", "--data.tokenizer.vocab_size", str(case.vocab),
            "--data.seq_len", str(case.length), "--data.batch_size", str(case.rows), "--data.cache_dir", f"{folder}/c",
            "--trainer.max_steps", str(WARM + steps), "--trainer.precision", "32-true", "--schedule.warmup", "1",
            "--trainer.limit_val_batches", "0", *(["--compile", "default"] if compiled else []),
            *(word for name, size in sizes.items() for word in (f"--model.shape.{name}", str(size))),
        ])  # fmt: skip
    return moments[WARM - 1 :]


def measure(peer: str, case: Case, steps: int) -> dict[str, float]:
    """One peer, in this process."""
    name, compiled = peer.removesuffix("_compiled"), peer.endswith("_compiled")
    if name == "fit":
        moments = fitted(case, compiled, steps)
    elif name in OBJECTIVES:
        moments = looped(*ours(case, OBJECTIVES[name], compiled), case, steps)
    else:
        moments = looped(*theirs(case, name == "loop_masked", compiled), case, steps)
    return {**steps_between(moments), "peak_mb": peak_mb()}


def summary(case: Case, found: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Medians, rates and ratios to the first peer of each kind."""
    outline = Outline(BackboneSpec(), case.shape.resolve(), case.vocab)
    tokens, counted = case.rows * case.length, flops(outline, parameters(outline), case.length).training_per_token
    best, table = matmul_rate(), {}
    for peer, rounds in found.items():
        figures = medians(rounds)
        rate = 1000 * tokens / figures["processor_ms"]
        table[peer] = {name: round(value, 1) for name, value in figures.items()}
        table[peer] |= {"tokens_per_second": round(1000 * tokens / figures["wall_ms"], 1)}
        table[peer] |= {"tokens_per_processor_second": round(rate, 1)}
        if peer.startswith(("loop", "bare", "fit")) and peer != "loop_masked":
            table[peer] |= {"gflops": round(rate * counted / 1e9, 1)}
            table[peer] |= {"share_of_matmul_rate": round(rate * counted / 1e9 / best, 3)}
        unit = {"masked": "loop_masked", "block": "bare"}.get(peer, "loop")
        if unit in found and unit != peer:
            ratios = [
                theirs["processor_ms"] / own["processor_ms"] for own, theirs in zip(rounds, found[unit], strict=True)
            ]
            table[peer] |= {f"speed_by_{unit}": [round(value, 3) for value in sorted(ratios)]}
    return {"mflop_per_token": round(counted / 1e6, 2), "matmul_gflops": round(best, 1), "peers": table}


def main() -> None:
    """Measure the peers in turn, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=CASES, default="S1")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS[:6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--measure", choices=PEERS, help="be this peer")
    asked = parser.parse_args()
    if asked.quick:
        asked.shape, asked.peers, asked.rounds, asked.steps = "tiny", ["bare"], 1, 1
    case = CASES[asked.shape]
    if asked.measure:
        return print(json.dumps(measure(asked.measure, case, asked.steps)))
    own = [__file__, "--shape", asked.shape, "--steps", str(asked.steps), "--measure"]
    found, busy = busy_beside(lambda: in_turn({peer: [*own, peer] for peer in asked.peers}, asked.rounds))
    record = {"benchmark": "training_step", "shape": asked.shape, "rounds": asked.rounds, "steps": asked.steps}
    record |= {"cores_busy_with_other_work": round(busy, 2), **summary(case, found)}
    print(json.dumps({**record, **machine()}))


if __name__ == "__main__":
    main()
