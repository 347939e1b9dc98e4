import itertools
import math

import pytest
import torch

from lit_small_lm.analysis.removal import greedily_removed, removed, swapped
from lit_small_lm.analysis.subject import Variant
from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.context import Context
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.gpas import GPAS
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm

FAMILIES = [
    *(
        BackboneSpec(norm=norm)
        for norm in (
            PreNorm(),
            PostNorm(),
            LayerNormScaling(),
            DeepNorm(),
            MixNorm(share=0.5),
            GPAS(),
            ParallelNorm(),
            AttentionResiduals(),
            AttentionResiduals(branches_a_source=4),
        )
    ),
    BackboneSpec(layer=LayerSpec(mixer=Attention(value_residual="learned"))),
    BackboneSpec(
        layer=LayerSpec(mixer=Attention(window=4)), more_layers={"full": LayerSpec()}, pattern=("layer", "full")
    ),
]
ORDERS = ((1, 2, 3), (0, 1, 3), (0, 1, 2), (3, 1, 2, 0), (0, 2, 1, 3), (2,), ())


def by_hand(subject, order):
    """(units,) nats of a network whose list of layers was made anew."""
    net = subject.net
    own, net.layers = net.layers, torch.nn.ModuleList(net.layers[i] for i in order)
    found = torch.zeros(subject.questions.count, dtype=torch.float64)
    with torch.no_grad():
        for question in subject.questions:
            query = question.query
            nats = net(query.tokens, Context(query.visibility), query.targets)
            for row, column in itertools.product(*map(range, nats.shape)):
                unit = int(question.units[row, column])
                if unit >= 0:
                    found[unit] += nats[row, column]
    net.layers = own
    return found


@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: f"{type(spec.norm).__name__}-{len(spec.pattern)}")
def test_variants_are_what_a_network_of_those_layers_says(make_subject, spec):
    subject = make_subject(spec)
    found = subject.nats([Variant(order) for order in ORDERS])
    for order, row in zip(ORDERS, found, strict=True):
        torch.testing.assert_close(row, by_hand(subject, order), rtol=1e-12, atol=1e-12)
    assert len(subject.net.layers) == 4
    torch.testing.assert_close(subject.full, by_hand(subject, range(4)), rtol=1e-12, atol=1e-12)


def test_a_rise_and_its_error_by_hand(make_subject):
    subject = make_subject()
    nats = by_hand(subject, (0, 1, 3))
    differences, tokens = (nats - by_hand(subject, range(4))).tolist(), subject.questions.tokens.tolist()
    assert sum(tokens) == 4 * 24 - 3
    rise = sum(differences) / sum(tokens)
    count = len(tokens)
    squares = sum((d - rise * t) ** 2 for d, t in zip(differences, tokens, strict=True))
    error = math.sqrt(squares * count / (count - 1)) / sum(tokens)
    found = subject.rise(subject.nats([Variant((0, 1, 3))])[0])
    assert found == pytest.approx((rise, error), rel=1e-9)


def test_pairing_makes_errors_small(make_subject):
    """A layer that does next to nothing: its rise is known much better than either loss."""
    subject = make_subject()
    with torch.no_grad():
        for weight in subject.net.layers[2].parameters():
            weight.mul_(1e-3)
    nats = subject.nats([Variant((0, 1, 3))])[0]
    assert subject.rise(nats).error < 0.01 * subject.loss(nats).error


def test_without_a_layer_that_does_nothing_nothing_changes(make_subject, still, tell):
    subject = make_subject()
    still(subject.net.layers[1])
    found = removed(subject, tell)
    assert found["rise"][1] == 0 and found["rise_error"][1] == 0
    assert all(abs(found["rise"][layer]) > 1e-3 for layer in (0, 2, 3))


def test_swapping_equal_layers_changes_nothing(make_subject, tell):
    subject = make_subject()
    subject.net.layers[3].load_state_dict(subject.net.layers[1].state_dict())
    found = swapped(subject, tell)
    assert found["rise"][1][3] == found["rise"][3][1] == 0
    others = [abs(found["rise"][a][b]) for a in range(4) for b in range(a + 1, 4) if (a, b) != (1, 3)]
    assert min(others) > 1e-4
    loss = subject.loss(subject.full).value
    assert found["permutation"] == pytest.approx(sum(others) / 6 / loss, rel=1e-9)


def test_swaps_take_the_factor_along(make_subject, tell):
    """Equal weights under LayerNorm Scaling are not equal layers."""
    subject = make_subject(BackboneSpec(norm=LayerNormScaling()))
    subject.net.layers[3].load_state_dict(subject.net.layers[1].state_dict())
    assert abs(swapped(subject, tell)["rise"][1][3]) > 1e-4


def test_greedy_removal_tries_everything(make_subject, tell):
    subject = make_subject()
    found = greedily_removed(subject, 3, tell)
    left = set(range(4))
    for layer, rise in zip(found["layers"], found["rise"], strict=True):
        tried = {gone: by_hand(subject, sorted(left - {gone})).sum().item() for gone in left}
        assert layer == min(tried, key=tried.get)
        full = subject.full.sum().item()
        assert rise == pytest.approx((tried[layer] - full) / subject.questions.tokens.sum().item(), rel=1e-9)
        left.discard(layer)


def test_a_single_layer_has_no_pairs(make_subject, tell):
    assert swapped(make_subject(layers=1), tell) == {"rise": [[0.0]], "rise_error": [[0.0]], "permutation": None}
