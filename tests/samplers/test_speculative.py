"""Self-speculation: whatever the draft, texts follow the autoregressive law; greedy ones are the greedy ones."""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Decoding
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.samplers.speculative import SelfSpeculation
from lit_small_lm.shapes import FixedShape

oracle = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("oracle.py"))))
SPECIALS, REAL = oracle.SPECIALS, oracle.REAL
DIMS = FixedShape(dim=16, n_layers=2, n_heads=2, hidden=24).resolve()
FAMILIES = oracle.FAMILIES
RAGGED = torch.tensor([[1, 1, 1, 0, 4, 5], [1, 0, 3, 4, 5, 3], [0, 4, 4, 4, 3, 5]])


def network(family="canon"):
    torch.manual_seed(1)
    net = Backbone(FAMILIES[family], DIMS, 6).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def joint(at, size=4):
    return Decoding(("causal", "block"), size, at, "causal")


def run(net, prompt, n, at="own", size=4, **settings):
    return list(SelfSpeculation(**settings).frames(net, prompt, n, 0, SPECIALS, joint(at, size)))


@torch.no_grad()
def autoregressive_law(net, prompt, n, temperature=1.0):
    """{text: probability} of all texts of n tokens, cut at their end."""
    texts = torch.tensor([(*prompt, *text) for text in itertools.product(REAL, repeat=n)])
    logits = net(texts, Context(Visibility.rows(texts)))[:, len(prompt) - 1 : -1]
    logits[..., [SPECIALS.pad, SPECIALS.mask]] = -torch.inf
    found = (logits / temperature).log_softmax(-1).gather(-1, texts[:, len(prompt) :, None]).sum((1, 2)).exp()
    law = {}
    for text, probability in zip(texts[:, len(prompt) :].tolist(), found.tolist(), strict=True):
        cut = oracle.truncated(tuple(text))
        law[cut] = law.get(cut, 0.0) + probability
    return law


@pytest.mark.parametrize("at", ["own", "before"])
@pytest.mark.parametrize(("family", "settings"), [("canon", {}), ("convolutions", {"temperature": 0.5})])
def test_texts_follow_the_autoregressive_law(family, settings, at):
    net, prompt = network(family), (0, 4, 3)
    wanted = autoregressive_law(net, prompt, 4, **settings)
    assert sum(wanted.values()) == pytest.approx(1, abs=1e-12)
    frames = run(net, torch.tensor([prompt]).expand(3_000, -1), 4, at, size=6, **settings)
    assert oracle.p_value(frames[-1].tokens[:, 3:], wanted) > 1e-3


def test_the_draft_alone_has_another_law():
    """Else the test above would say nothing: what is drafted is far from autoregressive."""
    net, prompt = network(), (0, 4, 3)
    drafts = list(
        LowConfidence(tokens=9).frames(net, torch.tensor([prompt]).expand(3_000, -1), 4, 0, SPECIALS, joint("own", 8))
    )
    assert oracle.p_value(drafts[-1].tokens[:, 3:], autoregressive_law(net, prompt, 4)) < 1e-6


@pytest.mark.parametrize("at", ["own", "before"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_temperature_it_is_greedy_decoding(family, at):
    """Over many refusals, which the memory of keys, values and convolutions has to forget row by row."""
    net = network(family)
    *_, greedy = Autoregressive(temperature=0).frames(net, RAGGED, 24, 0, SPECIALS)
    frames = run(net, RAGGED, 24, at, temperature=0)
    for found, wanted in zip(frames[-1].tokens.tolist(), greedy.tokens.tolist(), strict=True):
        assert oracle.truncated(tuple(found[6:])) == oracle.truncated(tuple(wanted[6:]))
    assert torch.equal(frames[-1].tokens[:, :6], RAGGED)


def test_without_drafts_it_draws_what_autoregressive_sampling_draws():
    net = network()
    *_, wanted = Autoregressive(temperature=0.8, top_k=3).frames(net, RAGGED, 9, 0, SPECIALS)
    found = run(net, RAGGED, 9, temperature=0.8, top_k=3, drafted=1)[-1].tokens
    for a, b in zip(found.tolist(), wanted.tokens.tolist(), strict=True):
        assert oracle.truncated(tuple(a[6:])) == oracle.truncated(tuple(b[6:]))


class Agreeing:
    """A network that says the same whatever it is asked, so that every draft is accepted."""

    def __call__(self, tokens, ctx, targets=None, scored=None):
        self.calls += 1
        for name in ("k", "v"):
            ctx.cache.keys_values(name, *[torch.zeros(len(tokens), 1, tokens.shape[1], 1)] * 2)
        ctx.keys()
        return torch.tensor([-50.0, 0, 0, 1.0, 2.0, 0.5]).double().expand(len(scored), 6)


def test_two_passes_a_block_where_drafts_are_right():
    net = Agreeing()
    net.calls = 0
    frames = run(net, torch.tensor([[0, 3, 4, 5]]), 40, size=8)
    assert frames[-1].nfe == net.calls == 12  # 5 tokens to the end of the first block and one more, 8 four times, 3


def test_every_pass_yields_a_token():
    frames = run(network(), RAGGED[2:], 30)
    counts = [0, *(int(frame.settled.sum()) - 6 for frame in frames)]
    assert all(later > earlier for earlier, later in zip(counts, counts[1:], strict=False))
    assert [frame.nfe for frame in frames] == list(range(1, len(frames) + 1))
    assert len(frames) <= 30 and frames[-1].settled.all()


def test_settled_tokens_stay():
    frames = run(network(), RAGGED, 12)
    for frame, later in zip(frames, frames[1:], strict=False):
        assert torch.equal(frame.tokens[frame.settled], later.tokens[frame.settled])


@pytest.mark.parametrize(
    ("prompt", "specials", "says"),
    [
        (torch.tensor([[0, 2, 4]]), SPECIALS, "left to right"),
        (torch.tensor([[0, 4]]), SPECIALS._replace(mask=None), "no mask token"),
    ],
)
def test_what_cannot_be_asked_is_refused(prompt, specials, says):
    with pytest.raises(RequestError, match=says):
        list(SelfSpeculation().frames(network(), prompt, 3, 0, specials, joint("own")))
