"""From a budget or a target loss to parameters, tokens and shapes."""

import math
from functools import cache

import pytest

from lit_small_lm.backbone import BackboneSpec, size_of
from lit_small_lm.errors import RequestError
from lit_small_lm.planning import proposals
from lit_small_lm.planning.devices import by_name
from lit_small_lm.planning.proposals import LEEWAY, STYLES, Means
from lit_small_lm.plugin import Dims, Size

VOCAB = 512


def of_llama(dims):
    """Closed form of the default family, embeddings tied."""
    inside = dims.dim * dims.head_dim * 2 * (dims.n_heads + dims.n_kv_heads) + 3 * dims.dim * dims.hidden + 2 * dims.dim
    outside = VOCAB * dims.dim
    return Size(dims.n_layers * inside + outside + dims.dim, dims.n_layers * inside + dims.dim)


MEANS = Means(sizing=of_llama)


@cache
def proposed(flops=1e18):
    return proposals.for_budget(flops, MEANS, "exact")


def test_the_closed_form_is_the_networks():
    dims = Dims(64, 2, 4, 2, 16, 96)
    assert of_llama(dims) == size_of(BackboneSpec(), dims, VOCAB)


def test_parameters_are_in_the_middle_of_the_band():
    found = proposed()
    assert found.optimum.n.low < found.params < found.optimum.n.high
    assert found.params == pytest.approx(math.sqrt(found.optimum.n.low * found.optimum.n.high))
    assert [alternative.style for alternative in found.alternatives] == ["wide", "medium", "deep"]


@pytest.mark.parametrize("index", range(3))
def test_alternatives(index):
    """Near the parameters, of the asked width per layer, with all tokens that the budget pays for."""
    found = proposed()
    one = found.alternatives[index]
    assert one.size == of_llama(one.dims)
    assert one.size.total == pytest.approx(found.params, rel=0.05)
    assert abs(math.log(one.dims.dim / one.dims.n_layers / STYLES[one.style])) <= math.log(LEEWAY) + 1e-9
    assert 6 * one.size.total * one.tokens == pytest.approx(1e18)
    assert one.loss.band.low < one.loss.by_fit["hoffmann"] < one.loss.band.high
    assert f"width per layer is {one.dims.dim / one.dims.n_layers:.1f}" in str(one.evidence)
    assert one.bill is None and one.memory is None and one.total is None


def test_no_other_depth_comes_nearer():
    found = proposed()
    for one in found.alternatives:
        near = [proposals._solved(found.params, n, MEANS) for n in range(2, 60)]
        allowed = [d for d in near if abs(math.log(d.dim / d.n_layers / STYLES[one.style])) <= math.log(LEEWAY)]
        best = min(abs(math.log(of_llama(dims).total / found.params)) for dims in allowed)
        assert abs(math.log(one.size.total / found.params)) == pytest.approx(best)


def test_depth_is_said_to_be_a_rule_of_thumb():
    assert "no fit says which is best" in str(proposed().statements)


def test_costs():
    means = Means(
        sizing=of_llama,
        total=lambda dims: Size(2 * of_llama(dims).total, 0),
        flops_per_token=lambda dims: 7 * of_llama(dims).total,
        memory=lambda dims: 16 * of_llama(dims).total,
        device=by_name("h100"),
        utilisation=0.5,
        count=2,
        price=3.0,
    )
    one = proposals.for_budget(1e18, means, "exact").alternatives[0]
    assert one.tokens == pytest.approx(1e18 / 7 / one.size.total)
    assert one.memory == 16 * one.size.total
    assert one.bill.seconds == pytest.approx(1e18 / 989e12)
    assert one.bill.cost == pytest.approx(2 * one.bill.seconds / 3600 * 3)
    assert one.total.total == 2 * one.size.total and "active parameters" in str(one.loss.statements)


def test_the_shape_at_hand_is_kept_to():
    like = Dims(dim=96, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=16, hidden=384)
    means = Means(sizing=of_llama, like=like)
    for one in proposals.for_budget(1e17, means, "exact").alternatives:
        assert (one.dims.head_dim, one.dims.n_heads // one.dims.n_kv_heads) == (16, 3)
        assert one.dims.hidden / one.dims.dim == pytest.approx(4, rel=0.05)


def test_a_target_loss():
    """The compute at which the last of the fits has reached it."""
    found = proposals.for_loss(3.2, MEANS, "exact")
    assert found.flops == found.needed.band.high == max(reach.value for reach in found.needed.by_fit.values())
    assert all(one.loss.between.low < 3.2 for one in found.alternatives)
    assert all(one.loss.between.high == pytest.approx(3.2, rel=0.005) for one in found.alternatives)


def test_a_target_out_of_reach():
    with pytest.raises(
        RequestError, match=r"1\.5 nats per token is not reachable at any size; floors by fit: hoffmann"
    ):
        proposals.for_loss(1.5, MEANS, "exact")


def test_a_budget_too_small_for_any_network():
    with pytest.raises(
        RequestError, match=r"it calls for [\d,]+ parameters; the smallest .* has 80,064; allowed: a larger"
    ):
        proposals.for_budget(1e11, MEANS, "exact")


def test_a_bound_gets_no_proposal():
    for found in (proposals.for_budget(1e18, MEANS, "upper"), proposals.for_loss(3.0, MEANS, "upper")):
        assert (found.flops, found.params, found.alternatives) == (None, None, ())
        assert "no published fit can be used" in found.statements[0].text
