"""Scores are sums over documents, whatever the batches; losses are means over weights, whatever the accumulation."""

import math

import pytest
import torch

from lit_small_lm.context import Visibility
from lit_small_lm.plugin import Query
from lit_small_lm.training.score import DocumentNLL, StepSums, ratio, weighted_sum


def scored(positions=200, documents=7):
    g = torch.Generator().manual_seed(0)
    nll = torch.rand(positions, generator=g)
    docs = torch.randint(0, documents, (positions,), generator=g).sort().values
    return nll, docs, torch.randint(0, 5, (positions,), generator=g)


def test_batches_do_not_change_the_score():
    nll, docs, size = scored()
    whole, parts = DocumentNLL(7), DocumentNLL(7)
    whole.update(nll[None], docs[None], torch.ones(1, 200, dtype=torch.bool), size[None])
    for piece in torch.arange(200).split(17):
        parts.update(
            nll[piece][None], docs[piece][None], torch.ones(1, len(piece), dtype=torch.bool), size[piece][None]
        )
    for key, value in whole.compute().items():
        assert parts.compute()[key] == pytest.approx(value.item(), rel=1e-12), key
    assert whole.compute()["loss"] == pytest.approx(nll.double().mean().item())
    assert whole.compute()["bits_per_byte"] == pytest.approx(
        nll.double().sum().item() / math.log(2) / size.sum().item()
    )


def test_uncounted_positions_do_not_count():
    nll, docs, size = scored()
    counted = torch.arange(200) % 3 > 0
    metric = DocumentNLL(7)
    metric.update(nll[None], docs[None], counted[None], size[None])
    assert metric.compute()["tokens"] == counted.sum()
    assert metric.compute()["loss"] == pytest.approx(nll[counted].double().mean().item())


def test_the_standard_error_of_a_ratio_is_that_of_resampled_documents():
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(50, 500, (400,), generator=g).double()
    nats = tokens * (1 + 0.3 * torch.randn(400, generator=g, dtype=torch.float64))
    _, error = ratio(nats, tokens)
    draws = torch.randint(0, 400, (4000, 400), generator=g)
    spread = (nats[draws].sum(1) / tokens[draws].sum(1)).std()
    assert error == pytest.approx(spread.item(), rel=0.1)


def test_one_document_has_no_standard_error():
    value, error = ratio(torch.tensor([3.0]), torch.tensor([2.0]))
    assert value == 1.5
    assert error.isnan()


def test_weights_are_averaged_over_accumulated_batches():
    torch.manual_seed(0)
    parameter = torch.randn(6, requires_grad=True)
    inputs, weights = torch.randn(4, 3, 6), torch.randint(0, 3, (4, 3)).float()
    sums = StepSums()
    for x, w in zip(inputs, weights, strict=True):  # four accumulated batches, as Lightning divides them
        row = torch.zeros(1, 3)
        query = Query(row, Visibility.rows(row), row, weights=w[None], count=w.sum()[None])
        nll = (x @ parameter)[None]
        nats = weighted_sum(nll, query)
        sums.add(nats, query, tokens=3)
        (nats / row.numel() / 4).backward()
    found = parameter.grad * sums.gradient_scale(lambda value, reduce_op: value)
    parameter.grad = None
    ((inputs @ parameter) * weights).sum().div(weights.sum()).backward()
    torch.testing.assert_close(found, parameter.grad)
