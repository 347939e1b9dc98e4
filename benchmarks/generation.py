"""Text drawn greedily, 32 tokens of prompt and 100 new ones: this package, transformers' `generate`, and diffusion.

    python benchmarks/generation.py [--shape S1 S2] [--batch 1 16] [--threads 1 2] [--rounds N] [--quick]

prints one JSON line for each shape, batch and number of threads; needs the extra [hf]. Networks are Llamas with random
weights, so this is speed and says nothing of text. All ways take their turn in every round. With one thread, times are
of the processor, with more they are wall times.

`cached` is autoregressive decoding with its cache, `theirs` transformers' with its own. At the least batch also:
`uncached`, the full pass for every token; `canvas` and `blocks`, which fill masks, of the whole text or block by block
of 32 behind remembered ones, by the number of tokens an evaluation; `break_even` is the number from which they are
faster than `cached`, between measured ones by interpolation (the least one measured, where that is faster already);
null: none of those measured is.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from measuring.asked import Asking, at_least
from measuring.cases import CASES, Case
from measuring.peer import ours, theirs
from measuring.record import say
from torch import Tensor

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Visibility
from lit_small_lm.plugin import Decoding, Sampler, Specials
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.layout import lay_by_outputs
from lit_small_lm.samplers.low_confidence import LowConfidence

PROMPT, PAIR = 32, ("cached", "theirs")
WAYS = {"canvas": Decoding(("bidirectional",)), "blocks": Decoding(("block",), 32)}
Draw = Callable[[Tensor], object]
"""Of a prompt (B, T)."""


class Endless:
    """A network that never ends a text, so that every way draws as many tokens."""

    def __init__(self, net: Backbone, end: int) -> None:
        self.net, self.end = net, end

    def __call__(self, *args, **kwargs) -> Tensor:
        logits = self.net(*args, **kwargs)
        logits[..., self.end] = -1e4
        return logits


@torch.no_grad()
def uncached(net: Backbone, prompt: Tensor, new: int, specials: Specials) -> Tensor:
    """Greedy decoding that computes every earlier position again for each token."""
    for _ in range(new):
        logits = net(prompt, Context(Visibility.rows(prompt)))[:, -1]
        logits[:, specials.never_drawn()] = -torch.inf
        prompt = torch.cat([prompt, logits.argmax(-1, keepdim=True)], dim=1)
    return prompt


def drawn(sampler: Sampler, net: Backbone, new: int, specials: Specials, decoding: Decoding) -> Draw:
    """The last frame's tokens of a sampler."""
    return lambda prompt: list(sampler.frames(net, prompt, new, 0, specials, decoding))[-1].tokens


def ways(case: Case, new: int, tokens: list[int]) -> dict[str, Draw]:
    """Every way to draw, by name."""
    torch.manual_seed(0)
    specials = Specials(vocab_size=case.vocab_size, end=0, pad=1, mask=2)
    net, other = ours(case).eval(), theirs(case).eval()
    lay_by_outputs(net)  # as `generate` does
    options = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 1}
    found = {
        "cached": drawn(Autoregressive(temperature=0), net, new, specials, Decoding(("causal",))),
        "theirs": lambda prompt: other.generate(prompt, attention_mask=torch.ones_like(prompt), **options),
        "uncached": lambda prompt: uncached(net, prompt, new, specials),
    }
    for (name, decoding), count in itertools.product(WAYS.items(), tokens):
        filling = LowConfidence(temperature=0, tokens=count)
        found[f"{name} {count}"] = drawn(filling, Endless(net, specials.end), new, specials, decoding)
    return found


def break_even(speeds: Mapping[int, float], wanted: float) -> float | None:
    """Tokens an evaluation at which a speed is reached."""
    points = sorted(speeds.items())
    if points[0][1] >= wanted:
        return float(points[0][0])
    for (few, slow), (many, fast) in itertools.pairwise(points):
        if fast >= wanted:
            return round(few + (many - few) * (wanted - slow) / (fast - slow), 2)
    return None


def seconds(draw: Draw, prompt: Tensor, clock: Callable[[], float]) -> float:
    """What drawing takes."""
    began = clock()
    tokens = draw(prompt)
    assert tokens.shape[1] > prompt.shape[1]
    return clock() - began


def measured(
    taking: Mapping[str, Draw], prompt: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of every way in every round."""
    for name in PAIR:
        taking[name](prompt)  # what comes once, such as buffers
    found = [{name: seconds(draw, prompt, clock) for name, draw in taking.items()} for _ in range(rounds)]
    return {name: [times[name] for times in found] for name in taking}


def figures(found: Mapping[str, list[float]], count: int, tokens: list[int]) -> dict[str, object]:
    """Speeds in tokens per second, ratios round by round, and break-evens, from the seconds of every round."""
    speeds = {name: count / statistics.median(rounds) for name, rounds in found.items()}
    ratios = sorted(other / own for own, other in zip(found["cached"], found["theirs"], strict=True))
    record = {name: round(speeds[name], 1) for name in PAIR}
    record |= {"cached_by_theirs": round(statistics.median(ratios), 2), "lowest": round(ratios[0], 2)}
    record |= {"highest": round(ratios[-1], 2)}
    if "uncached" not in speeds:
        return record
    record |= {"uncached": round(speeds["uncached"], 1)}
    for name in WAYS:
        own = {number: speeds[f"{name} {number}"] for number in tokens}
        record[name] = {str(number): round(speed, 1) for number, speed in own.items()}
        record[f"{name}_break_even"] = break_even(own, speeds["cached"])
    return record


def main() -> None:
    """Measure what is asked for."""
    parser = Asking(__doc__)
    parser.add_argument("--shape", nargs="+", choices=CASES, default=["S1", "S2"])
    parser.add_argument("--batch", nargs="+", type=at_least(1), default=[1, 16])
    parser.add_argument("--tokens", nargs="+", type=at_least(1), default=[2, 4, 8, 16], help="an evaluation fills")
    parser.add_argument("--new", type=at_least(1), default=100)
    parser.add_argument("--threads", nargs="+", type=at_least(1), default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny network, a few tokens")
    asked = parser.parse_args()
    if asked.quick:
        asked.shape, asked.batch, asked.tokens, asked.new, asked.threads, asked.rounds = ["tiny"], [1], [2], 4, [1], 1
    for shape in asked.shape:
        case, compared = CASES[shape], ways(CASES[shape], asked.new, asked.tokens)
        for batch, threads in itertools.product(asked.batch, asked.threads):
            torch.set_num_threads(threads)
            clock = time.process_time if threads == 1 else time.perf_counter
            prompt = torch.randint(3, case.vocab_size, (batch, PROMPT))
            taking = compared if batch == min(asked.batch) else {name: compared[name] for name in PAIR}
            found = measured(taking, prompt, asked.rounds, clock)
            how = {"shape": shape, "batch": batch, "threads": threads, "prompt": PROMPT, "new": asked.new}
            say("generation", {**how, **figures(found, batch * asked.new, asked.tokens)})


if __name__ == "__main__":
    main()
