"""A mixture of experts by one grouped product, against the loop over experts, and against a dense FFN of equal work.

    python benchmarks/experts.py [--quick]

prints one JSON line: milliseconds of a training step of the branch (forward and backward) and of decoding one position,
for few wide experts and for many narrow ones, and their ratios, on this machine.
"""

import json
import platform
import sys
import time
from collections.abc import Callable

import torch

from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.plugin import Dims, Site

DIM, HIDDEN = 384, 512
MIXTURES = {"8 experts": (8, 2), "64 experts": (64, 8)}
"""(experts, experts a position goes through); the chosen ones together are as wide as the dense FFN."""
POSITIONS, ROUNDS = (256, 1) if "--quick" in sys.argv else (4096, 15)
Ways = dict[str, torch.nn.Module]


def step(ffn: torch.nn.Module, h: torch.Tensor) -> float:
    """Wall time of one forward and backward pass."""
    ctx = Context(Visibility.rows(h[..., 0]))
    started = time.perf_counter()
    ffn(h, ctx).square().mean().backward()
    return time.perf_counter() - started


@torch.no_grad()
def position(ffn: torch.nn.Module, h: torch.Tensor) -> float:
    """Wall time of one position, as in decoding."""
    ctx = Context(Visibility.rows(h[:, :1, 0]))
    started = time.perf_counter()
    ffn(h[:, :1], ctx)
    return time.perf_counter() - started


def medians(ways: Ways, measure: Callable[..., float], h: torch.Tensor) -> dict[str, float]:
    """The median milliseconds of each way, taken in turn, after one round that does not count."""
    rounds = [[measure(ffn, h) for ffn in ways.values()] for _ in range(ROUNDS + 1)]
    found = torch.tensor(rounds[1:]).median(0).values.tolist()
    return {name: round(1000 * value, 3) for name, value in zip(ways, found, strict=True)}


def ways_of(experts: int, top_k: int, h: torch.Tensor) -> Ways:
    """The mixture by the grouped product, the same one by the loop, and a dense FFN."""
    site = Site(Dims(dim=DIM, n_layers=1, n_heads=6, n_kv_heads=6, head_dim=64, hidden=HIDDEN), 0, "ffn")
    spec = MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=top_k), n_experts=experts, expert_hidden=HIDDEN // top_k)
    grouped, looped = spec.build(site), spec.build(site)
    looped.load_state_dict(grouped.state_dict())
    looped.together = False
    found, wanted = (ffn(h, Context(Visibility.rows(h[..., 0]))) for ffn in (grouped, looped))
    torch.testing.assert_close(found, wanted)
    return {"grouped": grouped, "looped": looped, "dense": GatedMLP().build(site)}


def main() -> None:
    """Measure all ways in turn, and print the medians."""
    torch.manual_seed(0)
    h, record = torch.randn(1, POSITIONS, DIM, requires_grad=True), {"benchmark": "experts", "positions": POSITIONS}
    for name, (experts, top_k) in MIXTURES.items():
        ways = ways_of(experts, top_k, h)
        train, decode = medians(ways, step, h), medians(ways, position, h)
        record[name] = {
            "step_ms": train,
            "looped_by_grouped": round(train["looped"] / train["grouped"], 2),
            "grouped_by_dense": round(train["grouped"] / train["dense"], 2),
            "one_position_ms": {"mixture": decode["looped"], "dense": decode["dense"]},
        }
    record |= {"dim": DIM, "hidden": HIDDEN, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
