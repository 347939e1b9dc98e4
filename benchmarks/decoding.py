"""Tokens per second of generation with the key/value and convolution cache, against the full pass for every token.

    python benchmarks/decoding.py [--quick]

prints one JSON line: seconds of both, and their ratio, on this machine.
"""

import json
import platform
import sys
import time

import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.plugin import Specials
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.shapes import FixedShape

PROMPT = 32
NEW, ROUNDS = (4, 1) if "--quick" in sys.argv else (100, 5)
SPECIALS = Specials(vocab_size=4096, end=0, pad=1, mask=2)


@torch.no_grad()
def uncached(net: Backbone, prompt: torch.Tensor) -> torch.Tensor:
    """Greedy decoding that computes every earlier position again for each token."""
    for _ in range(NEW):
        logits = net(prompt, Context(Visibility.rows(prompt)))[:, -1]
        logits[:, [SPECIALS.pad, SPECIALS.mask]] = -torch.inf
        prompt = torch.cat([prompt, logits.argmax(-1, keepdim=True)], dim=1)
    return prompt


def cached(net: Backbone, prompt: torch.Tensor) -> torch.Tensor:
    """The sampler's own decoding, greedy."""
    return list(Autoregressive(temperature=0).frames(net, prompt, NEW, 0, SPECIALS))[-1].tokens


def seconds(decode, net: Backbone, prompt: torch.Tensor) -> float:
    """Wall time of one decoding."""
    started = time.perf_counter()
    decode(net, prompt)
    return time.perf_counter() - started


def main() -> None:
    """Measure both in turn, and print the medians."""
    torch.manual_seed(0)
    shape = FixedShape(dim=256, n_layers=8, n_heads=8, hidden=688)
    net = Backbone(BackboneSpec(layer=LayerSpec(canon_at="AC")), shape.resolve(), 4096).eval()
    prompt = torch.randint(3, 4096, (1, PROMPT))
    assert torch.equal(cached(net, prompt), uncached(net, prompt))
    pairs = torch.tensor([[seconds(cached, net, prompt), seconds(uncached, net, prompt)] for _ in range(ROUNDS)])
    fast, slow = pairs.median(0).values.tolist()
    record = {"benchmark": "decoding", "tokens": NEW, "cached_s": round(fast, 4), "uncached_s": round(slow, 4)}
    record |= {"ratio": round(slow / fast, 2), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
