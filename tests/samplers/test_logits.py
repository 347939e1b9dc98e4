"""From logits to draws: edges of temperature, top-k and top-p, and the distribution that is drawn from."""

import math

import pytest
import torch

from lit_small_lm.errors import RunError
from lit_small_lm.samplers.logits import draw, probabilities

LOGITS = torch.tensor([[0.5, 2.0, -1.0, 1.0, 0.0], [3.0, -2.0, 0.1, 0.2, 0.3]])


def test_plain_is_the_softmax():
    probs = probabilities(LOGITS)
    assert probs.dtype == torch.float64
    torch.testing.assert_close(probs, torch.softmax(LOGITS.double(), -1), rtol=1e-14, atol=0)


def test_temperature_divides_the_logits():
    torch.testing.assert_close(probabilities(LOGITS, 0.5), torch.softmax(LOGITS.double() * 2, -1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-310])
def test_no_and_hardly_any_temperature_take_the_likeliest(temperature):
    wanted = torch.zeros(2, 5, dtype=torch.float64)
    wanted[0, 1] = wanted[1, 0] = 1
    assert torch.equal(probabilities(LOGITS, temperature), wanted)


def test_a_high_temperature_is_uniform():
    torch.testing.assert_close(probabilities(LOGITS, 1e12), torch.full((2, 5), 0.2, dtype=torch.float64))


@pytest.mark.parametrize(("k", "kept"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 3, 4]), (5, range(5)), (99, range(5))])
def test_top_k_keeps_the_k_likeliest(k, kept):
    probs = probabilities(LOGITS, top_k=k)[0]
    assert probs.nonzero().flatten().tolist() == list(kept)
    wanted = torch.softmax(LOGITS[0].double()[list(kept)], -1)
    torch.testing.assert_close(probs[list(kept)], wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("p", "kept"), [(1e-9, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.99, 4), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_hold_the_mass(p, kept):
    probs = probabilities(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), top_p=p)[0]
    assert probs.nonzero().flatten().tolist() == list(range(kept))
    assert probs.sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("p", "kept"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_top_p_stops_as_soon_as_the_mass_is_reached(p, kept):
    """Four equal logits have probabilities of exactly a quarter."""
    assert probabilities(torch.zeros(1, 4), top_p=p).count_nonzero() == kept


def test_top_p_counts_the_mass_that_top_k_left():
    """Of 1/2 and 1/4, kept by top-k, the first holds two thirds: enough for 0.6."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert probabilities(logits, top_k=2, top_p=0.6)[0].nonzero().flatten().tolist() == [0]
    assert probabilities(logits, top_k=2, top_p=0.7)[0].nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.3}])
def test_forbidden_ids_have_no_probability(settings):
    probs = probabilities(LOGITS, never=(1, 0), **settings)
    assert not probs[:, :2].any()
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logits_of_the_caller_stay_as_they_are(dtype):
    logits = LOGITS.to(dtype, copy=True)
    probabilities(logits, never=(0,))
    assert torch.equal(logits, LOGITS.to(dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad):
    with pytest.raises(RunError, match="not finite"):
        probabilities(torch.tensor([[0.0, bad]]))


def test_logits_may_be_as_large_as_numbers_are():
    assert probabilities(torch.tensor([[-3e38, 3e38]])).tolist() == [[0, 1]]


def test_rare_tokens_are_not_lost():
    """A probability of e-20 is far below float32's resolution at one, and must still be drawable."""
    probs = probabilities(torch.tensor([[20.0, 0.0]]))
    assert probs[0, 1].item() == pytest.approx(math.exp(-20), rel=1e-6)
    assert draw(probs, torch.tensor([1 - 1e-9], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("u", [0.0, 0.1, 0.25, 0.5, 0.75, 0.999, 1 - 2**-53])
def test_draw_never_returns_what_has_no_probability(u):
    """Zeros at both ends, in the middle, and sums that rounding leaves just off one."""
    rows = [
        [0.0, 0.5, 0.0, 0.5, 0.0],
        [0.0, 0.0, 1.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
        [0.1, 0.2, 0.3, 0.4, 0.0],
        [0.0, 0.7, 0.1, 0.1, 0.1],
        [1 / 3, 1 / 3, 0.0, 1 / 3 - 1e-16, 0.0],
    ]
    probs = torch.tensor(rows, dtype=torch.float64)
    found = draw(probs, torch.full((len(rows),), u, dtype=torch.float64))
    assert (probs.gather(1, found.unsqueeze(1)) > 0).all()


def test_draw_inverts_the_cumulative_distribution():
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25]] * 5, dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.24, 0.25, 0.74, 0.75], dtype=torch.float64)
    assert draw(probs, uniform).tolist() == [0, 0, 2, 2, 3]


def test_draws_follow_the_probabilities():
    """Pearson's chi-square over 4 cells with 20,000 draws of one seed; 16.3 is its 0.1 % point for 3 degrees."""
    probs = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.05], dtype=torch.float64)
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(probs.expand(20_000, 5), uniform), minlength=5)
    wanted = probs * 20_000
    cells = wanted > 0
    assert counts[2] == 0
    assert ((counts - wanted)[cells].square() / wanted[cells]).sum() < 16.3
