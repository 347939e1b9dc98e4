"""Scalings of rotary frequencies, by their formulas."""

import math

import pytest
import torch

from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling


def test_linear_scaling_interpolates_positions():
    """A text four times as long is read as if its positions lay four times as close."""
    q = torch.randn(1, 1, 8, 6, dtype=torch.float64)
    far = Context(Visibility(torch.arange(0, 32, 4).unsqueeze(0)))
    near = Context(Visibility(torch.arange(8).unsqueeze(0)))
    stretched = Rotary(scaling=LinearScaling(factor=4.0)).rotate(6)(q, q, far)[0]
    torch.testing.assert_close(stretched, Rotary().rotate(6)(q, q, near)[0], rtol=1e-12, atol=1e-12)


def test_llama3_scaling_by_wavelength():
    """Waves longer than 100/1 are stretched eightfold, those shorter than 100/4 kept, one in between half and half."""
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=100)
    waves = torch.tensor([10.0, 24.9, 40.0, 100.1, 5000.0], dtype=torch.float64)
    found = 2 * math.pi / scaling.frequencies(2 * math.pi / waves)
    between = 1 / (0.5 / 40 + 0.5 / 320)  # 100/40 turns lie midway between 1 and 4
    wanted = torch.tensor([10.0, 24.9, between, 800.8, 40000.0], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_yarn_by_the_number_of_the_pair():
    """Pairs that turn more than 16 / pi times within the length are kept, those that turn less than once divided."""
    scaling = YarnScaling(factor=4.0, original_length=64, fast_turns=16 / math.pi, slow_turns=1.0, borders="exact")
    plain = 100.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    step = math.log(100) / 8
    first, last = math.log(64 / 32) / step, math.log(64 / (2 * math.pi)) / step
    stretched = [min(max((i - first) / (last - first), 0), 1) for i in range(8)]
    wanted = torch.tensor([f * (1 - s) + f * s / 4 for f, s in zip(plain.tolist(), stretched, strict=True)])
    torch.testing.assert_close(scaling.frequencies(plain), wanted.double(), rtol=1e-6, atol=0)
    assert stretched[1] == 0 and 0 < stretched[2] < 1 and stretched[5] == 1


def test_yarn_s_borders_at_whole_pairs():
    scaling = YarnScaling(factor=4.0, original_length=64, fast_turns=16 / math.pi)
    plain = 100.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    share = plain / scaling.frequencies(plain)  # 1 where kept, 4 where stretched in full
    assert share[1] == 1 and share[5] == 4
    stretched = (1 - scaling.frequencies(plain) / plain) / 0.75
    torch.testing.assert_close(stretched[1:6], torch.linspace(0, 1, 5, dtype=torch.float64)[:5], rtol=1e-9, atol=1e-9)


def test_a_lone_pair_is_kept():
    assert YarnScaling().frequencies(torch.ones(1)) == 1


def test_yarn_s_turns_in_the_wrong_order_are_refused():
    with pytest.raises(RequestError, match="fast_turns: 1.0; allowed: above slow_turns 1.0"):
        YarnScaling(fast_turns=1.0).frequencies(torch.ones(3))


def test_tables_of_two_scalings_are_not_mixed_up():
    """Layers of one forward pass share a table only where everything about it is the same."""
    ctx, q = Context(Visibility(torch.arange(9).unsqueeze(0))), torch.randn(1, 1, 9, 4)
    plain = Rotary().rotate(4)(q, q, ctx)[0]
    assert not torch.equal(Rotary(scaling=LinearScaling(factor=2.0)).rotate(4)(q, q, ctx)[0], plain)


def test_factors_in_the_wrong_order_are_refused():
    scaling = Llama3Scaling(low_freq_factor=4.0, high_freq_factor=4.0)
    with pytest.raises(RequestError, match="high_freq_factor: 4.0; allowed: above low_freq_factor 4.0"):
        scaling.frequencies(torch.ones(3))
