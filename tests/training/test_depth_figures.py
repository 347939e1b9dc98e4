"""The formulas of depth telemetry against numbers worked out by hand."""

import math

import pytest
import torch

from lit_small_lm.nn.attention import plain_attention
from lit_small_lm.training.callbacks.depth_figures import (
    DEAD,
    attention_entropy,
    dead_units,
    root_mean_square,
    turn,
    update_ratio,
    variance,
)


def row(*values):
    """(1, 1, D)"""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)


def test_variance_norm_and_ratio():
    assert variance(row(1, 3, 5, 7)).item() == 5.0  # mean 4: (9 + 1 + 1 + 9) / 4
    assert root_mean_square(row(3, 4)).item() == pytest.approx(math.sqrt(12.5))
    assert update_ratio(row(3, 4), row(0, 10)).item() == 0.5
    assert update_ratio(row(0, 0), row(0, 0)).item() == 0.0


def test_half_precision_is_left_before_anything_is_summed():
    x = torch.full((1, 1, 4096), 300.0, dtype=torch.float16)
    assert root_mean_square(x).item() == 300.0  # its square is no float16
    assert update_ratio(x, x).item() == 1.0


@pytest.mark.parametrize(("degrees", "share"), [(0, 0.0), (60, 1 / 3), (90, 0.5), (135, 0.75), (180, 1.0)])
def test_angles(degrees, share):
    x, y = row(2.0, 0.0), 3 * row(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    angle, influence = turn(x, y)
    assert angle.item() == pytest.approx(share, abs=1e-12)
    assert influence.item() == pytest.approx(1 - math.cos(math.radians(degrees)), abs=1e-12)


def test_a_layer_that_does_nothing_has_no_angle_at_all():
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    angle, influence = turn(x, 4 * x)
    assert not angle.any()
    assert not influence.any()
    small = turn(x, x + 1e-4 * x.roll(1, -1))[0]
    assert (small > 1e-5).all()  # what an arc cosine in float32 cannot tell from nothing
    assert (small < 1e-4).all()


def test_entropy_of_even_attention_is_the_logarithm_of_what_is_seen():
    q, k = torch.zeros(2, 4, 6, 8), torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    assert attention_entropy(q, k) == pytest.approx(torch.full((2, 6), math.log(6)))
    seen = torch.arange(6) <= torch.arange(6).unsqueeze(1)
    wanted = torch.arange(1, 7).log().expand(2, 6)
    torch.testing.assert_close(attention_entropy(q, k, seen), wanted)
    torch.testing.assert_close(attention_entropy(q, k, torch.zeros(6, 6).masked_fill(~seen, -math.inf)), wanted)


def test_entropy_of_weights_that_are_known():
    """One head looks at two keys with weights 3/4 and 1/4, the other at one alone."""
    q = torch.tensor([[[[1.0]], [[1000.0]]]])  # (1, 2, 1, 1)
    k = torch.tensor([[[[math.log(3.0)], [0.0]]]])  # (1, 1, 2, 1)
    two = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert attention_entropy(q, k, scale=1.0).item() == pytest.approx(two / 2, rel=1e-6)
    assert attention_entropy(q, k, scale=0.5).item() != pytest.approx(two / 2, rel=1e-2)


def test_entropy_is_that_of_the_weights_attention_has():
    """With the identity for values, the plain twin of attention gives its weights."""
    made = torch.Generator().manual_seed(3)
    q, k = torch.randn(1, 4, 5, 8, generator=made), torch.randn(1, 2, 5, 8, generator=made)
    seen = (torch.arange(5) <= torch.arange(5).unsqueeze(1)).expand(1, 1, 5, 5)
    weights = plain_attention(q, k, torch.eye(5).expand(1, 2, 5, 5), seen)  # (1, H, T, S)
    wanted = -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean(1)
    torch.testing.assert_close(attention_entropy(q, k, seen), wanted)


def test_dead_units_are_those_that_nothing_moves():
    hidden = torch.ones(1, 3, 5)
    hidden[..., 0] = 0.0
    hidden[..., 1] = 0.5 * DEAD
    hidden[0, 1, 2] = 0.0  # moved by the others
    hidden[0, 2] = 100.0  # padding
    counted = torch.tensor([[True, True, False]])
    assert dead_units(hidden, counted).item() == pytest.approx(2 / 5)
    assert dead_units(torch.zeros(1, 3, 5), counted).item() == 1.0
