from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from lit_small_lm.analysis.questions import ask
from lit_small_lm.analysis.states import readings
from lit_small_lm.analysis.subject import Subject, Variant
from lit_small_lm.context import Context, Visibility
from lit_small_lm.keys import generator
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Objective, Query


@dataclass(frozen=True, kw_only=True)
class _Masked(Objective):
    """A toy of masked diffusion: one rate a row, masked positions are scored and weighted by 1 / rate."""

    kind: ClassVar = "bidirectional"
    bound: ClassVar = "upper"

    def query(self, batch, key):
        tokens, documents = batch.tokens[:, :-1], batch.doc_ids[:, :-1]
        draw = generator(*key)
        rate = torch.rand(len(tokens), 1, generator=draw) * 0.8 + 0.2
        masked = (torch.rand(tokens.shape, generator=draw) < rate) & (documents >= 0)
        scored = masked.flatten().nonzero().squeeze(1)
        noisy = torch.where(masked, batch.specials.mask, tokens)
        weights = (1 / rate).double().expand_as(tokens).flatten()[scored]
        visibility = Visibility.rows(noisy, documents, "bidirectional")
        return Query(noisy, visibility, tokens.flatten()[scored], weights, scored=scored)

    def sampler(self):
        raise NotImplementedError


def test_documents_are_the_unit(make_batch):
    questions = ask(NextToken(), [make_batch()], 0, draws=4)
    assert questions.unit == "documents" and questions.count == questions.documents == 12
    assert questions.draws == 1 and len(questions.items) == 1
    assert questions.tokens.sum() == 4 * 24 - 3


def test_rows_stand_for_few_documents(make_batch):
    questions = ask(NextToken(), [make_batch(rows=2)], 0, draws=1)
    assert questions.unit == "rows" and questions.documents == 6
    assert questions.tokens.tolist() == [24, 21]


def test_last_positions(make_batch):
    (question,) = ask(NextToken(), [make_batch()], 0, draws=1)
    documents = make_batch().doc_ids[:, :-1]
    wanted = torch.zeros_like(documents, dtype=torch.bool)
    for document in documents.unique().tolist():
        places = (documents == document).nonzero()
        if document >= 0:
            wanted[tuple(places[-1])] = True
    assert torch.equal(question.last, wanted) and wanted.sum() == 12


def test_noise_is_drawn_once_for_every_variant(make_net, make_batch):
    questions = ask(_Masked(), [make_batch()], seed=3, draws=5)
    assert len(questions.items) == questions.draws == 5
    assert questions.tokens.sum() == 5 * (4 * 24 - 3)
    tokens = [question.query.tokens for question in questions]
    assert all(not torch.equal(tokens[0], other) for other in tokens[1:])
    again = [question.query.tokens for question in ask(_Masked(), [make_batch()], seed=3, draws=5)]
    assert all(map(torch.equal, tokens, again))
    other = ask(_Masked(), [make_batch()], seed=4, draws=5)
    assert not torch.equal(other.items[0].query.tokens, tokens[0])
    subject = Subject(make_net(), questions)
    same, less = subject.nats([Variant((0, 1, 2, 3)), Variant((0, 2, 3))])
    assert torch.equal(same, subject.full) and not torch.equal(less, same)


def test_weighted_nats_by_hand(make_net, make_batch):
    questions = ask(_Masked(), [make_batch()], seed=3, draws=1)
    subject, (question,) = Subject(make_net(), questions), questions
    query, documents = question.query, make_batch().doc_ids[:, :-1].flatten()
    with torch.no_grad():
        logits = subject.net(query.tokens, Context(query.visibility)).flatten(0, 1).log_softmax(-1)
    wanted = [0.0] * 12
    for place, target, weight in zip(
        query.scored.tolist(), query.targets.tolist(), query.weights.tolist(), strict=True
    ):
        wanted[int(documents[place])] -= weight * logits[place, target].item()
    assert subject.full.tolist() == pytest.approx(wanted, rel=1e-9)
    assert int(question.asked.sum()) == len(query.scored) < int(question.data.sum())


@pytest.mark.parametrize("make", [MaskedDiffusion, lambda **how: BlockDiffusion(block_size=4, **how)])
def test_diffusion_is_scored_by_its_bound_whatever_it_trains_on(make_net, make_batch, make):
    questions = [
        ask(make(**how), [make_batch()], seed=1, draws=3)
        for how in ({}, {"average": "sequences"}, {"estimator": "complementary"})
    ]
    nats = [Subject(make_net(), found).full for found in questions]
    assert torch.equal(nats[0], nats[1]) and torch.equal(nats[0], nats[2])
    assert all(found.tokens.sum() == 3 * (4 * 24 - 3) for found in questions)
    assert (nats[0] > 0).all() and questions[0].unit == "documents"


def test_masked_and_unmasked_positions_are_read_apart(make_batch):
    (question,) = ask(MaskedDiffusion(), [make_batch()], seed=1, draws=1)
    found = readings(question, "bidirectional")
    assert list(found) == ["mean", "scored", "not scored"]
    assert torch.equal(found["scored"], (question.query.tokens == 2) & question.data)
    assert torch.equal(found["scored"] | found["not scored"], found["mean"])
