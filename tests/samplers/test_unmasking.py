"""What every sampler that fills masks keeps: given tokens, few evaluations, exact memory, exact conditionals."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Decoding
from lit_small_lm.samplers.ancestral import Ancestral
from lit_small_lm.samplers.asking import CachedBlocks, PlainBlocks
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.canvas import SamplingCanvas
from lit_small_lm.samplers.entropy_bound import EntropyBound
from lit_small_lm.samplers.factor import ConfidenceFactor
from lit_small_lm.samplers.first_hitting import FirstHitting
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.samplers.remasking import Remasking
from lit_small_lm.samplers.threshold import ConfidenceThreshold
from lit_small_lm.samplers.unmasking import Unmasking
from lit_small_lm.shapes import FixedShape

oracle = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("oracle.py"))))
SPECIALS, MASK = oracle.SPECIALS._replace(vocab_size=20), oracle.MASK
DIMS = FixedShape(dim=16, n_layers=3, n_heads=2, hidden=24).resolve()
FAMILIES = oracle.FAMILIES
ONCE = [
    Ancestral(steps=7),
    FirstHitting(),
    LowConfidence(),
    LowConfidence(tokens=3, by="entropy"),
    ConfidenceThreshold(threshold=0.3),
    ConfidenceFactor(factor=2.0),
    EntropyBound(bound=1.5),
]
"""Samplers that fill every place once."""
EVERY = [*ONCE, Remasking(steps=6, remasked=0.5)]
PROMPT = torch.tensor([[0, 4, 5, 6, 7], [0, 7, 8, 9, 3]])


def named(spec):
    return type(spec).__name__


def network(family="canon"):
    torch.manual_seed(0)
    net = Backbone(FAMILIES[family], DIMS, 20).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def net():
    return network()


class Counted:
    """Counts evaluations, and the positions that get logits."""

    def __init__(self, net):
        self.net, self.calls, self.positions, self.heads = net, 0, 0, 0

    def __call__(self, tokens, ctx, targets=None, scored=None):
        self.calls, self.positions = self.calls + 1, self.positions + tokens.numel()
        self.heads += tokens.numel() if scored is None else len(scored)
        return self.net(tokens, ctx, targets, scored)


def run(sampler, net, prompt=PROMPT, n=8, key=0, kind="bidirectional", size=None, at="own", specials=SPECIALS):
    return list(sampler.frames(net, prompt, n, key, specials, Decoding((kind,), size, at)))


def text(*args, **more):
    return run(*args, **more)[-1].tokens


def endless(logits_of):
    """A network that never ends a text, so that all places have to be filled."""

    def ask(tokens, ctx, targets=None, scored=None):
        logits = logits_of(tokens, ctx, targets, scored).clone()
        logits[..., SPECIALS.end] = -1e9
        return logits

    return ask


@pytest.mark.parametrize("kind", ["bidirectional", "block"])
@pytest.mark.parametrize("sampler", ONCE, ids=named)
def test_never_more_evaluations_than_tokens(net, sampler, kind):
    for prompt in (PROMPT, PROMPT[:1]):
        counted = Counted(net)
        frames = run(sampler, endless(counted), prompt, 8, kind=kind, size=4 if kind == "block" else None)
        assert [frame.nfe for frame in frames] == list(range(1, len(frames) + 1))
        assert frames[-1].nfe == counted.calls <= 8


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        (FirstHitting(), 8),
        (LowConfidence(), 8),
        (LowConfidence(tokens=3), 3),
        (LowConfidence(tokens=8), 1),
        (ConfidenceThreshold(threshold=1.0), 8),
        (ConfidenceThreshold(threshold=0.0), 1),
        (ConfidenceFactor(factor=0.0), 8),
        (ConfidenceFactor(factor=9.0), 1),
        (EntropyBound(bound=0.0), 8),
        (EntropyBound(bound=100.0), 1),
        (Ancestral(steps=1), 1),
    ],
    ids=repr,
)
def test_from_one_place_a_step_to_all_at_once(net, sampler, calls):
    assert run(sampler, endless(net), PROMPT[:1], 8)[-1].nfe == calls
    same = text(LowConfidence(tokens=8 // calls if calls != 3 else 3), endless(net))
    if not isinstance(sampler, (FirstHitting, EntropyBound)):
        assert torch.equal(text(sampler, endless(net)), same)


def test_the_head_runs_at_places_to_fill_alone(net):
    counted = Counted(net)
    run(LowConfidence(), endless(counted), PROMPT[:1], 6)
    assert counted.heads == 6 + 5 + 4 + 3 + 2 + 1
    counted = Counted(net)
    run(FirstHitting(), endless(counted), PROMPT[:1], 6)
    assert counted.heads == 6


@pytest.mark.parametrize("kind", ["bidirectional", "block"])
@pytest.mark.parametrize("sampler", EVERY, ids=named)
def test_holes_are_filled_and_given_tokens_never_change(net, sampler, kind):
    prompt = torch.tensor([[0, 4, MASK, MASK, 7, 8, MASK, 9, 3], [0, MASK, 8, 9, 3, MASK, MASK, MASK, 5]])
    given = prompt != MASK
    frames = run(sampler, net, prompt, 3, kind=kind, size=4 if kind == "block" else None)
    for frame, later in zip(frames, frames[1:], strict=False):
        assert torch.equal(frame.tokens[:, :9][given], prompt[given])
        assert torch.equal(frame.tokens[frame.settled], later.tokens[frame.settled])
    last = frames[-1]
    assert last.settled.all() and not torch.isin(last.tokens, torch.tensor([MASK, SPECIALS.pad])).any()
    assert not (last.tokens[:, 1:9] == SPECIALS.end).any(), "a text ended before what was given"


def test_masks_stand_in_frames_where_nothing_is_filled(net):
    for frame in run(LowConfidence(), net):
        assert torch.equal(frame.tokens == MASK, ~frame.settled)


@pytest.mark.parametrize("at", ["own", "before"])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_remembered_blocks_are_those_computed_anew(family, size, at, monkeypatch):
    """Token for token, with attention, windows, Canon layers and short convolutions, holes and ragged prompts."""
    net = network(family)
    ragged = torch.tensor([[1, 1, 1, 1, 1, 0, 4], [0, 7, MASK, 9, 3, MASK, 8], [1, 0, 4, 3, 5, 6, 7]])
    for sampler in (Ancestral(steps=7), LowConfidence(tokens=2), Remasking(steps=5, remasked=0.5)):
        remembered = text(sampler, net, ragged, 9, kind="block", size=size, at=at)
        with monkeypatch.context() as patch:
            patch.setattr(Unmasking, "blockwise", PlainBlocks)
            anew = text(sampler, net, ragged, 9, kind="block", size=size, at=at)
        assert torch.equal(remembered, anew), named(sampler)


@pytest.mark.parametrize("family", FAMILIES)
def test_remembering_gives_the_logits_of_computing_anew(family):
    """Not the tokens alone: every logit that is asked for, over five blocks."""
    canvas = SamplingCanvas(torch.tensor([[1, 1, 0, 4, 5], [0, 7, 8, 9, 3]]), 15, SPECIALS, 4)
    decoding = Decoding(("block",), 4, "before")
    fast, slow = (asker(network(family), canvas, decoding) for asker in (CachedBlocks, PlainBlocks))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for columns in canvas.blocks():
            while (open := canvas.open_in(columns)).any():
                logits = fast.logits(open, columns)
                torch.testing.assert_close(logits, slow.logits(open, columns), rtol=1e-9, atol=1e-9)
                chosen = open & (torch.rand(open.shape, generator=generator) < 0.6)
                canvas.fill(chosen, torch.randint(3, 20, (int(chosen.sum()),), generator=generator))
    assert fast.cache.length > 8


def test_finished_blocks_are_computed_once(net, monkeypatch):
    fast, slow = Counted(net), Counted(net)
    run(LowConfidence(), endless(fast), PROMPT[:1], 27, kind="block", size=4)
    monkeypatch.setattr(Unmasking, "blockwise", PlainBlocks)
    run(LowConfidence(), endless(slow), PROMPT[:1], 27, kind="block", size=4)
    assert fast.calls == slow.calls == 27
    assert fast.positions == 32 - 4 + 27 * 4 < slow.positions / 3


@pytest.mark.parametrize("sampler", ONCE, ids=named)
def test_blocks_of_one_are_autoregressive_sampling(net, sampler):
    """Draw for draw, where logits stand one position before: the network is then asked what it is asked there."""
    counted, prompt = Counted(net), torch.tensor([[1, 1, 0, 4], [0, 7, 8, 9]])
    blocks = run(sampler, endless(counted), prompt, 9, kind="block", size=1, at="before")
    frames = list(Autoregressive().frames(endless(net), prompt, 9, 0, SPECIALS))
    assert torch.equal(blocks[-1].tokens, frames[-1].tokens)
    assert blocks[-1].nfe == frames[-1].nfe == 9
    assert counted.positions == 2 * (4 + 8), "more positions were computed than autoregressive decoding does"


@pytest.mark.parametrize("sampler", ONCE, ids=named)
def test_one_block_as_long_as_the_text_is_the_whole_canvas(net, sampler):
    assert torch.equal(text(sampler, net), text(sampler, net, kind="block", size=13))


def test_blocks_of_a_bidirectional_network_are_filled_from_left_to_right(net):
    frames = run(FirstHitting(block_size=3), endless(net), PROMPT, 10)
    for frame in frames:
        open = frame.tokens[0, 5:] == MASK
        first, last = open.int().argmax().item() if open.any() else 10, 9 - (~open).flip(0).int().argmax().item()
        assert last < 0 or last <= first + 2, "a place is filled more than a block behind an open one"
    assert torch.equal(frames[0].tokens[:, :5], PROMPT)


def test_behind_the_end_of_a_text_nothing_is_asked():
    """A network that counts from 3 to 5 and then ends the text, in blocks of one."""
    asked = []

    def ask(tokens, ctx, targets=None, scored=None):
        asked.append(scored)
        following = tokens.flatten()[scored - 1] + 1
        return torch.nn.functional.one_hot(torch.where(following == 6, 0, following), 6).double() * 50

    sampler, decoding = LowConfidence(temperature=0), Decoding(("block",), 1)
    *_, last = sampler.frames(ask, torch.tensor([[0, 3]]), 8, 0, oracle.SPECIALS, decoding)
    assert last.tokens.tolist() == [[0, 3, 4, 5, 0, 0, 0, 0, 0, 0]]
    assert last.nfe == len(asked) == 3
    assert last.settled.all()


def test_a_row_that_has_ended_waits_for_the_others(net):
    rows = torch.tensor([[0, 4, 5, 6, 7]] * 30)
    together = text(FirstHitting(), net, rows, 10, kind="block", size=1)
    new = together[:, 5:]
    ended = (new == SPECIALS.end).any(1)
    assert 0 < ended.sum() < 30
    for row in new[ended]:
        first = (row == SPECIALS.end).int().argmax()
        assert (row[first:] == SPECIALS.end).all()


def test_a_row_is_drawn_alone_as_with_others(net):
    ragged = torch.tensor([[1, 1, 1, 0, 4, 5], [1, 0, 7, 8, 9, 3], [0, 4, 6, 6, 7, 9]])
    for sampler in EVERY:
        for kind, size in (("bidirectional", None), ("block", 4)):
            whole = text(sampler, net, ragged, 7, kind=kind, size=size)
            assert torch.equal(whole[:1, 3:], text(sampler, net, ragged[:1, 3:], 7, kind=kind, size=size))
            assert torch.equal(whole[:2, 1:], text(sampler, net, ragged[:2, 1:], 7, kind=kind, size=size))
            assert torch.equal(whole[:, :6], ragged)


def test_rows_of_one_prompt_differ(net):
    whole = text(FirstHitting(), net, PROMPT[:1].expand(2, -1), 10)
    assert not torch.equal(whole[0], whole[1])


def test_guidance_moves_away_from_what_is_said_without_the_prompt(net):
    """logits + w (logits - those with the prompt hidden), at two evaluations each; 0 asks once and changes nothing."""
    prompt, w = torch.tensor([[0, 4, 5, MASK, 7]]), 1.5
    counted = Counted(net)
    frames = run(LowConfidence(temperature=0, guidance=w), counted, prompt, 0)
    assert (frames[-1].nfe, counted.calls) == (2, 2)
    hidden = torch.tensor([[0, MASK, MASK, MASK, MASK]])
    with torch.no_grad():
        seen, without = (net(t, Context(Visibility.rows(t, kind="bidirectional")))[0, 3] for t in (prompt, hidden))
    guided = seen + w * (seen - without)
    guided[[0, 1, 2]] = -torch.inf
    assert frames[-1].tokens[0, 3] == guided.argmax()


class Rare:
    """Half of the mass on one token, half spread evenly over all the others."""

    def __init__(self, vocab):
        self.vocab = vocab

    def __call__(self, tokens, ctx, targets=None, scored=None):
        logits = torch.full((len(scored), self.vocab), -math.log(2 * (self.vocab - 4)))
        logits[:, 3] = -math.log(2)
        return logits


def race(vocab, mass, precision):
    """The mass that rare tokens together get in a step that fills a mask with the chance `mass`, half of it theirs,
    where each token races the mask with an exponential draw made of a uniform number of so many bits.

    A token wins if its draw is below x = mass / (2 vocab) times the mask's; of numbers on a grid, a whole number of
    steps of the grid lies below x. Integrated over the mask's draw.
    """
    draws = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    x = mass / (2 * vocab) * draws
    below = x if precision is None else (x * 2**precision).floor() / 2**precision
    wins = 1 - (1 - below) ** vocab
    return torch.trapezoid(wins * (-draws).exp(), draws).item()


def test_rare_tokens_keep_their_mass_however_fine_the_steps():
    """Half of the mass lies on 32,768 tokens. Where they race the mask in float32, whose uniform numbers have 24 bits,
    they lose nine tenths of it in steps of 1/1000; drawn after the place, in float64, they keep it."""
    vocab, rows, mass = 32_768, 400, 1e-3
    assert race(vocab, mass, None) == pytest.approx(mass / 2, rel=1e-2)
    assert race(vocab, mass, 53) == pytest.approx(mass / 2, rel=1e-2)
    assert race(vocab, mass, 24) < 0.1 * mass / 2
    specials, start = SPECIALS._replace(vocab_size=vocab + 4), torch.zeros(rows, 1, dtype=torch.long)
    drawn = text(Ancestral(steps=1000), Rare(vocab + 4), start, 1, specials=specials)[:, 1]
    assert (drawn != 3).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / rows**0.5)
    assert len(drawn[drawn != 3].unique()) > 0.45 * rows


@pytest.mark.parametrize(
    ("sampler", "more", "says"),
    [
        (LowConfidence(), {"specials": SPECIALS._replace(mask=None)}, "no mask token"),
        (LowConfidence(guidance=1.0), {"kind": "block", "size": 4}, "guidance"),
        (LowConfidence(), {"prompt": torch.tensor([[MASK, 4]]), "at": "before"}, "first token"),
    ],
)
def test_what_cannot_be_asked_is_refused(net, sampler, more, says):
    with pytest.raises(RequestError, match=says):
        run(sampler, net, **more)


def test_nothing_to_fill_gives_no_frames(net):
    assert run(LowConfidence(), net, PROMPT, 0) == []
