"""Training steps of several ways to train the same Llama on the same text, each in a process of its own, in turn.

    python benchmarks/training.py [--shape S1 S2] [--contest NAME ...] [--threads 1 2] [--turns N] [--quick]

prints one JSON line for each peer of each contest; needs the extra [hf]. Every peer trains in float32 (with `bf16` in
its name, with products in bfloat16), with fused AdamW (0.9, 0.95; decay 0.1) and gradients clipped at norm 1, which is
checked, on batches that are the same to the bit, under the same settings of the allocator. Contests:

    eager      `loop`, transformers' Llama in a plain loop; `module`, this package's network in one; `fit`, the command
               line with logger, progress and checkpoints as they are by default
    compiled   `loop`; `loop_compiled`; `fit_compiled` and `fit_layers`, the command line with `--compile default` and
               `--compile layers`
    litgpt     `litgpt_compiled`, litgpt's model and loss; `fit_compiled`; only where litgpt is installed
    masked     `loop_masked`, transformers' Llama seen both ways with head and loss at every position; `masked`, this
               package's masked diffusion; `masked_compiled`
    trainer    `module`; `fit`; `lightning_bare` and `lightning`, the same network under Lightning's own Trainer with
               nothing beside it, and with its defaults
    block      `module`; `block`, this package's block diffusion on the same rows, in blocks of 16
    bf16       `loop_bf16` and `loop_bf16_compiled`, the loop under autocast to bfloat16; `fit_bf16` and
               `fit_bf16_compiled`, the command line with the precision that it chooses on a processor with bfloat16
               instructions; `loop`, to see what that is worth

`over` holds a peer against each of the others: ratios above 1 are faster, the median with its quartiles. With one
thread they are of processor time, with more of wall time. `percent` is the share of what a product of 1024 x 1024
matrices reached in the same turns at its best.
"""

import itertools
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from measuring.asked import Asking, at_least
from measuring.cases import CASES, Case, precision
from measuring.commands import PEERS, command, environment_of, prepared
from measuring.record import say
from measuring.turns import ALLOCATORS, WARM_TURNS, Outcome, Seconds, compared, race

CONTESTS = {
    "eager": ("loop", "module", "fit"),
    "compiled": ("loop", "loop_compiled", "fit_compiled", "fit_layers"),
    **({"litgpt": ("litgpt_compiled", "fit_compiled")} if find_spec("litgpt") else {}),
    "masked": ("loop_masked", "masked", "masked_compiled"),
    "block": ("module", "block"),
    "trainer": ("module", "fit", "lightning_bare", "lightning"),
    "bf16": ("loop", "loop_bf16", "loop_bf16_compiled", "fit_bf16", "fit_bf16_compiled"),
}
RULER = "matmul"
AGREED = ("parameters", "optimizer", "fused", "betas", "weight_decay", "clip", "first_batch")
"""Settings that are the same for all peers of a contest."""


def measured(
    peers: Sequence[str], shape: str, environment: Mapping[str, str], turns: int, steps: int
) -> dict[str, Outcome]:
    """Let peers train in turn, and a product of matrices beside them.

    Raises:
        RuntimeError: one failed, or they do not train the same.
    """
    total = (WARM_TURNS + turns) * steps
    with tempfile.TemporaryDirectory() as made:
        prepared(shape, total, Path(made), environment)
        commands = {peer: command(peer, shape, total, Path(made)) for peer in (*peers, RULER)}
        found = race(commands, environment, turns, steps)
    for name in AGREED:
        said = {peer: found[peer].settings[name] for peer in peers}
        if len({str(value) for value in said.values()}) > 1:
            raise RuntimeError(f"they do not train the same: {name}: {said}")
    for peer in peers:
        if found[peer].settings["precision"] != precision(peer):
            raise RuntimeError(f"{peer} trains in {found[peer].settings['precision']}")
    return found


def figures(found: Mapping[str, Outcome], case: Case, threads: int) -> Iterator[dict[str, object]]:
    """A line for each peer, held against every other one."""
    clock = "processor" if threads == 1 else "wall"
    ruler = found[RULER].settings["gflop"]
    best = max(ruler / getattr(step, clock) for step in found[RULER].steps)
    peers = [peer for peer in found if peer != RULER]
    for peer in peers:
        outcome = found[peer]
        seconds = {name: statistics.median(getattr(step, name) for step in outcome.steps) for name in Seconds._fields}
        gflops = case.tokens * case.mflop(outcome.settings["parameters"]) / 1000 / seconds[clock]
        yield {
            "peer": peer,
            "step_ms": round(1000 * seconds[clock], 2),
            "tokens_per_processor_second": round(case.tokens / seconds["processor"], 1),
            "tokens_per_second": round(case.tokens / seconds["wall"], 1),
            "clock": clock,
            "over": {unit: compared(outcome.steps, found[unit].steps, clock) for unit in peers if unit != peer},
            "peak_mb": round(outcome.peak_mb),
            "gflops": round(gflops, 1),
            "percent": round(100 * gflops / best, 1),
            "matmul_gflops": round(best, 1),
            "first_step_s": round(outcome.first.wall, 1),
            "parameters": outcome.settings["parameters"],
        }


def main() -> None:
    """Run the contests asked for."""
    parser = Asking(__doc__)
    parser.add_argument("--shape", nargs="+", choices=CASES, default=["S1", "S2"])
    parser.add_argument("--contest", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="these peers alone, instead of a contest's")
    parser.add_argument("--threads", nargs="+", type=at_least(1), default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--turns", type=at_least(1), default=12, help="that are counted")
    parser.add_argument("--steps", type=at_least(1), default=1, help="of a turn")
    parser.add_argument("--allocator", choices=ALLOCATORS, default="kept", help="glibc's, for all peers")
    parser.add_argument("--quick", action="store_true", help="a tiny network, one peer")
    asked = parser.parse_args()
    if asked.quick:
        asked.shape, asked.peers, asked.threads, asked.turns = ["tiny"], ["module"], [1], 1
    contests = {"asked": asked.peers} if asked.peers else {name: CONTESTS[name] for name in asked.contest}
    for shape, (contest, peers), threads in itertools.product(asked.shape, contests.items(), asked.threads):
        found = measured(peers, shape, environment_of(asked.allocator, threads), asked.turns, asked.steps)
        how = {"shape": shape, "contest": contest, "threads": threads, "allocator": asked.allocator}
        how |= {"turns": asked.turns, "steps_a_turn": asked.steps}
        for line in figures(found, CASES[shape], threads):
            say("training", {**how, **line})


if __name__ == "__main__":
    main()
