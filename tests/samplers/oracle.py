"""Laws of samplers by enumeration, and the chi-square of drawn texts against them. Read with `runpy`, it is no test."""

import itertools
import math
from collections import Counter

import torch

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import Specials

END, PAD, MASK = 0, 1, 2
SPECIALS = Specials(vocab_size=6, end=END, pad=PAD, mask=MASK)
REAL = [0, 3, 4, 5]
"""What may be drawn."""
FAMILIES = {
    "canon": BackboneSpec(canon_at="ABCD"),
    "convolutions": BackboneSpec(
        layer=LayerSpec(mixer=ShortConv()),
        more_layers={"local": LayerSpec(mixer=Attention(window=3), canon_at="AC")},
        pattern=("layer", "local"),
    ),
}
"""Networks with a memory of convolutions beside that of attention."""


class Table:
    """A network whose logits are a random table: for every state of a canvas (T,), any conditionals at all.

    `spread` is the standard deviation of its logits; states with larger ones are more certain.
    """

    def __init__(self, length, seed=0, spread=1.5):
        self.length, self.calls, self.rows = length, 0, 0
        generator = torch.Generator().manual_seed(seed)
        self.logits = spread * torch.randn(6**length, length, 6, generator=generator, dtype=torch.float64)

    def __call__(self, tokens, ctx, targets=None, scored=None):
        assert tokens.shape[1] == self.length
        assert ctx.visibility.kind == "bidirectional"
        self.calls += 1
        logits = self.logits[self.state(tokens)]  # (B, T, V)
        if scored is None:
            return logits
        self.rows += len(scored)
        return logits.flatten(0, 1)[scored]

    def state(self, tokens):
        return (tokens * 6 ** torch.arange(self.length)).sum(-1)

    def probs(self, canvas, place, inside=False):
        """{token: probability} at a place of a canvas (a tuple); `inside`: the text cannot end there."""
        logits = self.logits[self.state(torch.tensor(canvas)), place].tolist()
        allowed = [token for token in REAL if not (inside and token == END)]
        weights = [math.exp(logits[token]) for token in allowed]
        return {token: weight / sum(weights) for token, weight in zip(allowed, weights, strict=True)}


def truncated(text):
    """A text up to its first end; what lies behind it is no part of it."""
    return text if END not in text else text[: text.index(END)] + (END,)


def law(net, prompt, n, plan, inside=()):
    """{text: probability} of a sampler whose `plan(canvas, open, step)` yields (probability, places filled now)."""
    found, start = Counter(), (*prompt, *[MASK] * n)
    waiting = {start: 1.0}
    for step in itertools.count():
        after = Counter()
        for canvas, mass in waiting.items():
            places = tuple(i for i, token in enumerate(canvas) if token == MASK)
            if not places:
                found[truncated(canvas[1:])] += mass
                continue
            for share, chosen in plan(canvas, places, step):
                for filled, weight in filled_in(net, canvas, chosen, inside):
                    after[filled] += mass * share * weight
        if not after:
            return dict(found)
        waiting = after


def filled_in(net, canvas, places, inside=()):
    """Every way of filling places independently, with its probability."""
    options = [net.probs(canvas, place, place in inside) for place in places]
    for tokens in itertools.product(*options):
        weight = math.prod(option[token] for option, token in zip(options, tokens, strict=True))
        full = list(canvas)
        for place, token in zip(places, tokens, strict=True):
            full[place] = token
        yield tuple(full), weight


def any_order(canvas, places, step):
    """One place after another, each with the same chance."""
    return [(1 / len(places), (place,)) for place in places]


def in_steps(alpha):
    """Ancestral sampling by its definition: from alpha[k] to alpha[k+1] each mask is filled by itself."""

    def plan(canvas, places, step):
        rate = (alpha[step + 1] - alpha[step]) / (1 - alpha[step])
        return list(subsets(places, rate))

    return plan


def subsets(places, rate):
    """Every subset of places, each of which is in it with the chance `rate`."""
    for members in itertools.product((False, True), repeat=len(places)):
        weight = math.prod(rate if taken else 1 - rate for taken in members)
        if weight:
            yield weight, tuple(place for place, taken in zip(places, members, strict=True) if taken)


def remasked_law(net, start, n, rates):
    """{text: probability} of remasking by its definition, for steps with these (emptied, filled) probabilities."""
    states = {(*start, *[MASK] * n): 1.0}
    for again, fill in rates:
        after = Counter()
        for canvas, mass in states.items():
            places = range(len(start), len(canvas))
            open = [i for i in places if canvas[i] == MASK]
            held = [i for i in places if canvas[i] != MASK]
            for (share, chosen), (other, emptied) in itertools.product(subsets(open, fill), subsets(held, again)):
                for filled, weight in filled_in(net, canvas, chosen):
                    left = tuple(MASK if i in emptied else token for i, token in enumerate(filled))
                    after[left] += mass * share * other * weight
        states = after
    found = Counter()
    for canvas, mass in states.items():
        found[truncated(canvas[len(start) :])] += mass
    return {text: mass for text, mass in found.items() if mass}


def p_value(texts, wanted, least=5):
    """The chance of so large a chi-square of texts (N, n) under the law `wanted`; rare cells are taken together."""
    counts, total = Counter(truncated(tuple(text)) for text in texts.tolist()), len(texts)
    assert set(counts) <= set(wanted), "a text was drawn that has no probability"
    cells, rest = [], [0.0, 0.0]
    for text, probability in wanted.items():
        expected, seen = probability * total, counts[text]
        if expected >= least:
            cells.append((seen, expected))
        else:
            rest = [rest[0] + seen, rest[1] + expected]
    if rest[1]:
        cells.append(tuple(rest))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    half = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)).item()


def drawn(sampler, net, prompt, n, count, key=0, **more):
    """The last frame's texts (count, ...) of so many rows of one prompt, without its first token."""
    rows = torch.tensor([prompt]).expand(count, -1)
    *_, last = sampler.frames(net, rows, n, key, SPECIALS, **more)
    return last.tokens[:, 1:]
