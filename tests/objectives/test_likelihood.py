"""Likelihoods of a text behind a prompt: the exact one is a distribution, the bound lies where enumeration puts it."""

import itertools
import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.likelihood import bounded, chain_rule, step_zero
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Batch, Dims, Specials
from lit_small_lm.training.lit import fitted

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


# --------------------------------------------------------------------------------------------------------- a conversion
FAMILIES = {
    "plain": BackboneSpec(),
    "Canon": BackboneSpec(canon_at="ABCD"),
    "untied": BackboneSpec(head="untied", logit_softcap=5.0),
    "convolutions": BackboneSpec(
        layer=LayerSpec(mixer=ShortConv()),
        more_layers={"attention": LayerSpec(canon_at="AC")},
        pattern=("layer", "attention"),
    ),
}
BEFORE = {
    "a mask that was there": Specials(12, end=0, pad=1, mask=2),
    "no mask": Specials(12, end=0, pad=1, mask=None),
    "no mask, but rows without a token": Specials(12, end=0, pad=1, mask=None, padding_from=10),
}
NOW = {
    "a mask that was there": BEFORE["a mask that was there"],
    "no mask": Specials(13, end=0, pad=1, mask=12),
    "no mask, but rows without a token": Specials(12, end=0, pad=1, mask=10, padding_from=11),
}


def converted(family, case):
    """An autoregressive network, and the one that takes its weights."""
    torch.manual_seed(3)
    dims = Dims(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12)
    before, now = (Backbone(FAMILIES[family], dims, rows.vocab_size).double() for rows in (BEFORE[case], NOW[case]))
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    now.load_state_dict(fitted(before.state_dict(), BEFORE[case], NOW[case]))
    return before.eval(), now.eval()


def packed(specials):
    tokens = torch.randint(3, 10, (3, 13), generator=torch.Generator().manual_seed(1))
    tokens[:, [0, 5]] = specials.end
    docs = torch.tensor([[0] * 5 + [1] * 8, [2] * 13, [3] * 5 + [4] * 3 + [-1] * 5])
    index = torch.arange(3)
    return Batch(tokens, docs, None, index, index, specials)


@pytest.mark.parametrize("case", BEFORE)
@pytest.mark.parametrize("family", FAMILIES)
def test_at_blocks_of_one_a_converted_network_is_the_autoregressive_one(family, case):
    before, now = converted(family, case)
    batch = packed(NOW[case])
    found = step_zero(now, before, BEFORE[case].vocab_size, batch, "before")
    assert found.converted == pytest.approx(found.autoregressive, abs=1e-9)
    assert found.tokens == 12 + 12 + 8
    assert (found.with_mask is None) == (case == "no mask")
    plain = NextToken().query(batch, (0, 0))
    nll = before(plain.tokens, plain.context(), plain.targets)[batch.doc_ids[:, :-1] >= 0]
    own = found.autoregressive if found.with_mask is None else found.with_mask
    assert own == pytest.approx(nll.mean().item(), abs=1e-9)  # the run's own likelihood
    assert found.with_mask is None or found.with_mask > found.autoregressive + 1e-3
    assert abs(step_zero(now, before, 12, batch, "own").converted - found.converted) > 1e-3


@pytest.mark.parametrize("family", ["plain", "untied"])
def test_the_mask_s_row_is_the_mean_of_the_rows_of_tokens(family):
    for case, known in (("no mask", 12), ("no mask, but rows without a token", 10)):
        before, now = converted(family, case)
        tables = [(before.embed, now.embed), *([] if now.head is None else [(before.head, now.head)])]
        for old, new in tables:
            assert torch.equal(new.weight[NOW[case].mask], old.weight[:known].mean(0))
            kept = [row for row in range(12) if row != NOW[case].mask]
            assert torch.equal(new.weight[kept], old.weight[kept])
