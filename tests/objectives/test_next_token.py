"""Next-token prediction: every target is asked of its own document alone."""

import dataclasses
import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Batch, Specials
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.shapes import FixedShape

SPECIALS = Specials(vocab_size=50, end=0, pad=1, mask=2)

TOKENS = torch.tensor([[0, 5, 6, 0, 7, 8, 9, 0]])  # 0 begins a document
DOCS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])


def batch(loss_mask=None):
    return Batch(TOKENS, DOCS, loss_mask, torch.tensor([0]), torch.tensor([0]), SPECIALS)


def test_targets_are_the_tokens_shifted_by_one():
    query = NextToken().query(batch(), (0, 0))
    assert query.tokens.tolist() == [[0, 5, 6, 0, 7, 8, 9]]
    assert query.targets.tolist() == [[5, 6, 0, 7, 8, 9, 0]]
    assert query.weights is None
    assert query.scored is None


def test_a_document_is_read_from_its_beginning_and_asked_for_its_end():
    packed = dataclasses.replace(batch(), specials=SPECIALS._replace(begin=4))
    query = NextToken().query(packed, (0, 0))
    assert query.tokens.tolist() == [[4, 5, 6, 4, 7, 8, 9]]
    assert query.targets.tolist() == [[5, 6, 0, 7, 8, 9, 0]]
    assert packed.tokens[0, 0] == 0


def test_positions_and_documents_are_those_of_the_inputs():
    view = NextToken().query(batch(), (0, 0)).visibility
    assert view.kind == "causal"
    assert view.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert view.doc_ids.tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_the_loss_mask_becomes_weights():
    mask = torch.tensor([[True, False, True, True, True, True, False]])
    query = NextToken().query(batch(mask), (0, 0))
    assert query.weights.tolist() == [[1, 0, 1, 1, 1, 1, 0]]
    assert query.count.tolist() == [5]


def test_there_is_no_noise():
    first, second = (NextToken().query(batch(), key) for key in ((0, 0), (9, 4)))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.targets, second.targets)


def test_it_declares_what_it_is():
    assert (NextToken.kind, NextToken.bound, NextToken().sampler()) == ("causal", "exact", Autoregressive())


def test_losses_of_a_packed_row_are_those_of_its_documents_alone():
    torch.manual_seed(0)
    shape = FixedShape(dim=16, n_layers=2, n_heads=2, hidden=24).resolve()
    net = Backbone(BackboneSpec(layer=LayerSpec(canon_at="ABCD")), shape, 10).double()
    packed = NextToken().query(batch(), (0, 0))
    nll = net(packed.tokens, Context(packed.visibility), packed.targets)
    for start, end in ((0, 3), (3, 7)):
        alone = Batch(
            TOKENS[:, start : end + 1], DOCS[:, start : end + 1], None, torch.tensor([0]), torch.tensor([0]), SPECIALS
        )
        query = NextToken().query(alone, (0, 0))
        wanted = net(query.tokens, Context(query.visibility), query.targets)
        torch.testing.assert_close(nll[:, start:end], wanted, rtol=1e-10, atol=1e-12)


def test_the_loss_of_a_network_that_knows_nothing_is_the_log_of_its_vocabulary():
    net = Backbone(BackboneSpec(), FixedShape(dim=16, n_layers=1, n_heads=2).resolve(), 10)
    torch.nn.init.zeros_(net.embed.weight)
    query = NextToken().query(batch(), (0, 0))
    nll = net(query.tokens, Context(query.visibility), query.targets)
    assert nll.tolist()[0] == pytest.approx([math.log(10)] * 7, rel=1e-6)
