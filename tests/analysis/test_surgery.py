"""Streams are put into carries of one stream alone; what others are is refused, not guessed."""

import pytest
import torch
from torch import nn

from lit_small_lm.analysis.catalogue import AnalysisSettings, analysed
from lit_small_lm.analysis.surgery import carrying
from lit_small_lm.errors import RequestError

X = torch.randn(2, 5, 4)
OTHER = torch.zeros(2, 5, 4)


def test_one_stream_is_replaced_however_often_it_is_held():
    assert carrying(X, OTHER) is OTHER
    assert all(part is OTHER for part in carrying((X, X), OTHER))


@pytest.mark.parametrize("carry", [(X, X.clone()), {"x": X}, torch.stack([X, X])], ids=["two", "named", "stacked"])
def test_any_other_carry_is_refused(carry):
    with pytest.raises(RequestError, match="not one stream"):
        carrying(carry, OTHER)


def test_without_a_stream_losses_are_measured_and_the_rest_says_why(make_subject, tell):
    subject = make_subject()
    net = subject.net
    net.open, net.close = nn.Flatten(1), nn.Sequential(nn.Unflatten(1, (-1, 16)), net.close)
    for layer in net.layers:
        layer.forward = lambda carry, ctx, run=layer.forward: run(carry.unflatten(1, (-1, 16)), ctx).flatten(1)
    found = analysed(subject, AnalysisSettings(), ["removal", "angular", "profile", "jacobian", "usefulness"], quiet)
    assert [name for name, result in found.items() if "unmeasured" not in result] == ["removal"]
    assert "holds no stream" in found["profile"]["unmeasured"]


def quiet(name, done, of):
    pass
