"""Likelihoods of a text behind a prompt: the exact one is a distribution, the bound lies where enumeration puts it."""

import itertools
import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.likelihood import bounded, chain_rule
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.plugin import Dims, Specials

MASK, VOCAB = 2, 5
SPECIALS = Specials(VOCAB, end=0, pad=1, mask=MASK)
REAL = [0, 1, 3, 4]
PROMPT, TEXT = torch.tensor([0, 4, 3]), torch.tensor([3, 1, 4])
OBJECTIVES = {
    "masked": MaskedDiffusion(),
    "masked, before": MaskedDiffusion(logits_at="before"),
    "blocks": BlockDiffusion(block_size=4),
    "blocks, before": BlockDiffusion(block_size=2, logits_at="before"),
    "blocks of one": BlockDiffusion(block_size=1),
    "joint": JointDiffusion(block_size=2),
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    dims = Dims(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12)
    net = Backbone(BackboneSpec(canon_at="AC"), dims, VOCAB).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_chain_rule_gives_a_distribution(net, name):
    texts = map(torch.tensor, itertools.product(REAL, repeat=2))
    total = sum(math.exp(-chain_rule(net, OBJECTIVES[name], PROMPT, text, SPECIALS).sum()) for text in texts)
    assert total == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_token_is_exact_either_way(net, name):
    if name == "joint":  # asked from left to right, and of the block: two answers
        return
    exact = chain_rule(net, OBJECTIVES[name], PROMPT, TEXT[:1], SPECIALS)
    bound, error = bounded(net, OBJECTIVES[name], PROMPT, TEXT[:1], SPECIALS, draws=3)
    assert bound.item() == pytest.approx(exact.item(), rel=1e-10)
    assert error < 1e-12


def test_blocks_of_one_are_exact_for_any_text(net):
    exact = chain_rule(net, OBJECTIVES["blocks of one"], PROMPT, TEXT, SPECIALS).sum()
    bound, error = bounded(net, OBJECTIVES["blocks of one"], PROMPT, TEXT, SPECIALS, draws=2)
    assert bound.item() == pytest.approx(exact.item(), rel=1e-10)
    assert error < 1e-12


def test_the_bound_is_the_mean_over_orders(net):
    total = 0.0
    for order in itertools.permutations(range(3)):
        row = torch.cat([PROMPT, torch.full((3,), MASK)])
        for place in order:
            view = Visibility.rows(row.unsqueeze(0), kind="bidirectional")
            logits = net(row.unsqueeze(0), Context(view))[0, 3 + place]
            total -= logits.index_fill(0, torch.tensor(MASK), -math.inf).log_softmax(-1)[TEXT[place]].item() / 6
            row[3 + place] = TEXT[place]
    bound, error = bounded(net, OBJECTIVES["masked"], PROMPT, TEXT, SPECIALS, draws=4096)
    assert 0 < error < 0.1
    assert abs(bound.item() - total) < 4 * error


def test_a_joint_model_s_exact_likelihood_is_its_next_token_loss(net):
    text = torch.cat([PROMPT, TEXT]).unsqueeze(0)
    logits = net(text, Context(Visibility.rows(text))).index_fill(-1, torch.tensor(MASK), -math.inf)
    wanted = -torch.log_softmax(logits[0, 2:5], -1).gather(1, TEXT.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chain_rule(net, OBJECTIVES["joint"], PROMPT, TEXT, SPECIALS), wanted)
