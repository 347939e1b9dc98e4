"""Left-to-right sampling: the same text from the same key, rows that do not depend on each other, cached = uncached."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.plugin import Specials
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.shapes import FixedShape

DIMS = FixedShape(dim=16, n_layers=2, n_heads=2, hidden=24).resolve()
PROMPT = torch.tensor([[3, 4, 5], [6, 7, 8], [3, 4, 5]])


@pytest.fixture(scope="module")
def net():
    """A random network whose next-token distributions are neither flat nor certain."""
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(layer=LayerSpec(canon_at="ABCD")), DIMS, 20).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


SPECIALS = Specials(vocab_size=20, end=0, pad=1, mask=2)


def text(net, prompt=PROMPT, n=12, key=0, specials=SPECIALS, **settings):
    return [frame.tokens for frame in Autoregressive(**settings).frames(net, prompt, n, key, specials)][-1]


def test_the_same_key_gives_the_same_text(net):
    assert torch.equal(text(net), text(net))
    assert not torch.equal(text(net), text(net, key=1))


def test_the_running_generator_plays_no_part(net):
    torch.manual_seed(1)
    first = text(net)
    torch.manual_seed(2)
    assert torch.equal(text(net), first)


def test_a_row_is_drawn_as_it_would_be_alone(net):
    whole = text(net)
    assert torch.equal(text(net, PROMPT[:1]), whole[:1])
    assert torch.equal(text(net, PROMPT[:2]), whole[:2])


def test_rows_of_one_prompt_differ(net):
    whole = text(net)
    assert torch.equal(PROMPT[0], PROMPT[2])
    assert not torch.equal(whole[0], whole[2])


def test_a_longer_text_begins_as_the_shorter_one(net):
    assert torch.equal(text(net, n=12)[:, :8], text(net, n=5))


def test_each_frame_adds_one_token_and_one_evaluation(net):
    frames = list(Autoregressive().frames(net, PROMPT, 4, 0, SPECIALS))
    assert [frame.nfe for frame in frames] == [1, 2, 3, 4]
    assert [frame.tokens.shape[1] for frame in frames] == [4, 5, 6, 7]
    for earlier, later in zip(frames, frames[1:], strict=False):
        assert torch.equal(later.tokens[:, :-1], earlier.tokens)


@torch.no_grad()
def test_greedy_text_is_the_argmax_of_the_full_pass(net):
    tokens = text(net, temperature=0.0)
    logits = net(tokens, Context(Visibility.rows(tokens)))
    assert torch.equal(tokens[:, 3:], logits[:, 2:-1].argmax(-1))


def test_top_k_of_one_is_greedy(net):
    assert torch.equal(text(net, top_k=1), text(net, temperature=0.0))
    assert torch.equal(text(net, top_p=1e-9), text(net, temperature=0.0))


def test_forbidden_ids_are_not_drawn(net):
    free = set(text(net, n=40)[:, 3:].flatten().tolist())
    pad, mask = sorted(free - set(PROMPT.flatten().tolist()))[:2]
    drawn = set(text(net, n=40, specials=SPECIALS._replace(pad=pad, mask=mask))[:, 3:].flatten().tolist())
    assert not drawn & {pad, mask}


def test_rows_without_a_token_are_not_drawn(net):
    free = set(text(net, n=40)[:, 3:].flatten().tolist())
    first = sorted(free)[1]
    specials = SPECIALS._replace(pad=None, mask=None, padding_from=first)
    assert set(text(net, n=40, specials=specials)[:, 3:].flatten().tolist()) <= set(range(first))


class Dice:
    """A network of fixed probabilities, to see whether the sampler follows them."""

    probs = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0], dtype=torch.float64)

    def __call__(self, tokens, ctx, targets=None, scored=None):
        ctx.cache.advance(tokens.shape[1])
        return self.probs.clamp(min=1e-300).log().expand(len(scored), 5)


def test_text_follows_the_network():
    """Chi-square of 8,000 tokens against the probabilities; 16.3 is the 0.1 % point for 3 degrees of freedom."""
    drawn = text(Dice(), torch.zeros(400, 1, dtype=torch.long), n=20, specials=SPECIALS._replace(pad=4, mask=4))[:, 1:]
    counts, wanted = torch.bincount(drawn.flatten(), minlength=5), Dice.probs * drawn.numel()
    assert counts[4] == 0
    assert ((counts - wanted)[:4].square() / wanted[:4]).sum() < 16.3
    repeats = (drawn[:, 1:] == drawn[:, :-1]).double().mean().item()  # independent draws repeat by chance only
    assert repeats == pytest.approx(Dice.probs.square().sum().item(), abs=0.03)
