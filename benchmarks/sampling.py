"""Tokens a second of filling masks, by tokens an evaluation, against autoregressive decoding with its cache.

    python benchmarks/sampling.py [--quick]

prints one JSON line for each batch size: tokens per second of processor time, in one thread, of autoregressive
decoding, of the whole canvas and of remembered blocks of 32, at 1 to 32 tokens an evaluation, on this machine. Weights
are random, so this is speed and says nothing of text. `break_even` is the number of tokens an evaluation from which
filling is the faster one, between measured ones by interpolation (the least one measured, where that is faster
already); null: none of those measured is.
"""

import json
import platform
import sys
import time

import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.plugin import Decoding, Sampler, Specials
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.shapes import FixedShape

QUICK = "--quick" in sys.argv
PROMPT, NEW, ROUNDS = 32, *((32, 1) if QUICK else (96, 3))
BATCHES, TOKENS, BLOCK = (1,) if QUICK else (1, 4), (8, 32) if QUICK else (1, 2, 4, 8, 16, 32), 32
SPECIALS = Specials(vocab_size=4096, end=0, pad=1, mask=2)
WAYS = {"canvas": Decoding(("bidirectional",)), "blocks": Decoding(("block",), BLOCK)}


class Endless:
    """A network that never ends a text, so that every way draws as many tokens."""

    def __init__(self, net: Backbone) -> None:
        self.net = net

    def __call__(self, *args, **kwargs) -> torch.Tensor:
        logits = self.net(*args, **kwargs)
        logits[..., SPECIALS.end] = -1e4
        return logits


def speed(sampler: Sampler, decoding: Decoding, net: Endless, prompt: torch.Tensor) -> float:
    """Tokens per processor second, all rows together."""
    started = time.process_time()
    for _ in sampler.frames(net, prompt, NEW, 0, SPECIALS, decoding):
        pass
    return prompt.shape[0] * NEW / (time.process_time() - started)


def break_even(speeds: dict[int, float], wanted: float) -> float | None:
    """Tokens an evaluation at which a speed is reached."""
    points = sorted(speeds.items())
    if points[0][1] >= wanted:
        return float(points[0][0])
    for (few, slow), (many, fast) in zip(points, points[1:], strict=False):
        if fast >= wanted:
            return round(few + (many - few) * (wanted - slow) / (fast - slow), 2)
    return None


def measure(net: Endless, batch: int) -> dict[str, object]:
    """Medians over rounds in which every way is measured once."""
    prompt = torch.randint(3, 4096, (batch, PROMPT))
    cases = {("autoregressive", 1): (Autoregressive(temperature=0), Decoding(("causal",)))}
    for name, decoding in WAYS.items():
        cases |= {(name, tokens): (LowConfidence(temperature=0, tokens=tokens), decoding) for tokens in TOKENS}
    rounds = [[speed(*case, net, prompt) for case in cases.values()] for _ in range(ROUNDS)]
    found = dict(zip(cases, torch.tensor(rounds).median(0).values.tolist(), strict=True))
    plain, record = found.pop(("autoregressive", 1)), {}
    for name in WAYS:
        speeds = {tokens: value for (way, tokens), value in found.items() if way == name}
        record[name] = {str(tokens): round(value, 1) for tokens, value in speeds.items()}
        record[f"{name}_break_even"] = break_even(speeds, plain)
    return {"autoregressive": round(plain, 1), **record}


def main() -> None:
    """Measure every batch size in turn."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = FixedShape(dim=256, n_layers=8, n_heads=8, hidden=688)
    net = Backbone(BackboneSpec(layer=LayerSpec(canon_at="AC")), shape.resolve(), 4096).eval()
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["machine"] = platform.processor() or platform.machine()
    for batch in BATCHES:
        record = {
            "benchmark": "sampling",
            "unit": "tokens per processor second",
            "batch": batch,
            "prompt": PROMPT,
            "new": NEW,
        }
        print(json.dumps({**record, **measure(Endless(net), batch), **machine}), flush=True)


if __name__ == "__main__":
    main()
