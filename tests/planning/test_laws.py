"""Published fits give the numbers that they are known for, and their inverses invert them."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from lit_small_lm.errors import RequestError
from lit_small_lm.planning import laws
from lit_small_lm.planning.laws import BESIROGLU, FITS, HOFFMANN, KAPLAN, MUENNIGHOFF, Repetition
from lit_small_lm.plugin import Size

OPTIMA = {
    ("hoffmann", 1e17): ("3.309e+07", "5.037e+08", "15.22", "4.1997"),
    ("hoffmann", 1e18): ("9.466e+07", "1.761e+09", "18.60", "3.4481"),
    ("hoffmann", 1e19): ("2.708e+08", "6.154e+09", "22.72", "2.9218"),
    ("besiroglu", 1e17): ("2.474e+07", "6.737e+08", "27.24", "4.3399"),
    ("besiroglu", 1e18): ("8.053e+07", "2.070e+09", "25.70", "3.4905"),
    ("besiroglu", 1e19): ("2.622e+08", "6.357e+09", "24.25", "2.9271"),
    ("muennighoff", 1e17): ("2.915e+07", "5.717e+08", "19.61", "4.2971"),
    ("muennighoff", 1e18): ("9.218e+07", "1.808e+09", "19.61", "3.4869"),
    ("muennighoff", 1e19): ("2.915e+08", "5.717e+09", "19.61", "2.9470"),
}  # fmt: skip
"""Fit and FLOPs -> parameters, tokens, tokens per parameter and loss at the optimum, as printed."""
BILLION = {"hoffmann": "3.7012", "besiroglu": "3.7819", "muennighoff": "3.7572"}
"""Loss of 70M parameters after a billion tokens."""
FED = {
    "hoffmann": ("1.229e+09", "2.428e+09"),
    "besiroglu": ("1.811e+09", "3.120e+09"),
    "muennighoff": ("1.373e+09", "2.432e+09"),
}
"""Tokens for which 70M and 124M parameters are the optimum."""
GPT_3_SCALE = {"hoffmann": "58.9", "besiroglu": "18.4", "muennighoff": "19.6"}
"""Tokens per parameter at 5.76e23 FLOPs."""
ROUNDED = {406.4, 410.7, 1.69, 0.34, 0.28}
each_fit = pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.name)


@pytest.mark.parametrize(("name", "flops"), OPTIMA)
def test_optima(name, flops):
    fit = laws.fit(name)
    best = fit.optimum(flops)
    found = f"{best.n:.3e}", f"{best.d:.3e}", f"{best.ratio:.2f}", f"{fit.loss(best.n, best.d):.4f}"
    assert found == OPTIMA[name, flops]


def test_the_table_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (1e\d+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    printed = {
        (name, float(flops)): tuple(re.sub(r"e(\d)$", r"e+0\1", value) for value in row) for name, flops, *row in rows
    }
    assert printed == OPTIMA


@each_fit
def test_published_points(fit):
    assert f"{fit.loss(70e6, 1e9):.4f}" == BILLION[fit.name]
    assert tuple(f"{fit.tokens_for(n):.3e}" for n in (70e6, 124e6)) == FED[fit.name]
    assert f"{fit.optimum(5.76e23).ratio:.1f}" == GPT_3_SCALE[fit.name]


@each_fit
def test_the_optimum_is_least(fit):
    best = fit.optimum(1e18)
    least = fit.loss(best.n, best.d)
    assert 6 * best.n * best.d == pytest.approx(1e18)
    assert all(fit.loss(best.n * share, best.d / share) > least for share in (0.5, 0.97, 1.03, 2))


@each_fit
def test_inverses(fit):
    loss = fit.loss(70e6, 1e9)
    assert fit.tokens_to_reach(loss, 70e6).value == pytest.approx(1e9)
    assert fit.parameters_for(fit.tokens_for(70e6)) == pytest.approx(70e6)
    best = fit.optimum(3e18)
    assert fit.flops_to_reach(fit.loss(best.n, best.d)).value == pytest.approx(3e18)


@each_fit
def test_floors(fit):
    """What no amount of tokens or FLOPs reaches is said to be so, with the floor."""
    floor = fit.e + fit.a / 70e6**fit.alpha
    reach = fit.tokens_to_reach(floor - 0.01, 70e6)
    assert reach.value is None and reach.floor == pytest.approx(floor) and "7e+07 parameters" in str(reach)
    assert fit.tokens_to_reach(floor, 70e6).value is None
    assert fit.tokens_to_reach(floor + 0.01, 70e6).value > 1e12
    assert fit.flops_to_reach(fit.e).value is None
    assert fit.flops_to_reach(fit.e + 0.01).value > 1e25


def test_repeated_data():
    """The losses and the optimum that the authors' notebook prints."""
    assert MUENNIGHOFF.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, abs=1e-12)
    assert MUENNIGHOFF.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, abs=1e-12)
    best, printed = MUENNIGHOFF.optimum_repeating(1e22, 25e9), (7_022_364_735.88, 237_336_955_477.55)
    assert best.n == pytest.approx(printed[0], rel=1e-3) and best.d == pytest.approx(printed[1], rel=1e-3)
    assert f"{best.d / 25e9:.2f}" == "9.49"
    assert MUENNIGHOFF.loss(best.n, best.d, 25e9) <= MUENNIGHOFF.loss(*printed, 25e9)  # theirs is on a grid


@pytest.mark.parametrize(("epochs", "loss"), [(1, 3.7546), (4, 3.3846), (16, 3.1916), (40, 3.1399)])
def test_epochs_of_a_small_run(epochs, loss):
    assert MUENNIGHOFF.loss(71_344_512, epochs * 1e9, 1e9) == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("n", [70e6, 7e9])
@pytest.mark.parametrize("d", [0.5e9, 4e9, 60e9])
def test_repeated_data_inverted(n, d):
    loss = MUENNIGHOFF.loss(n, d, 1e9)
    assert MUENNIGHOFF.tokens_to_reach(loss, n, 1e9).value == pytest.approx(d)


def test_repetition_has_a_floor():
    """Ever more epochs approach a loss above that of ever more tokens."""
    loss = MUENNIGHOFF.loss(70e6, 1e13, 1e9)
    reach = MUENNIGHOFF.tokens_to_reach(loss - 1e-6, 70e6, 1e9)
    assert reach.value is None and "1e+09 unique tokens" in str(reach)
    assert reach.floor == pytest.approx(loss) and reach.floor > MUENNIGHOFF.floor(70e6)
    assert MUENNIGHOFF.tokens_to_reach(loss - 1e-6, 70e6).value < 1e11


def test_repeats_count_from_the_first():
    assert Repetition.worth(10, 10, 5) == 10
    assert Repetition.worth(10, 11, 5) == pytest.approx(11, abs=0.02)
    assert Repetition.worth(10, 1e9, 5) == pytest.approx(60)
    assert Repetition.amount(10, 60, 5) is None


@pytest.mark.parametrize("fit", [HOFFMANN, BESIROGLU], ids=lambda fit: fit.name)
def test_fits_without_repetition_take_every_token_for_new(fit):
    assert fit.loss(70e6, 4e9, 1e9) == fit.loss(70e6, 4e9)
    assert fit.optimum_repeating(1e19, 1e6) == fit.optimum(1e19)


def test_kaplan():
    """The law of N alone has another n_c than the joint one."""
    assert f"{KAPLAN.converged(1e9):.4f}" == "2.3756"
    assert KAPLAN.loss(1e9, math.inf) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert KAPLAN.loss(1e9, math.inf) < KAPLAN.loss(1e9, 1e9)


def test_rounded_constants_are_in_no_fit():
    used = {value for fit in (*FITS, KAPLAN) for value in dataclasses.astuple(fit) if isinstance(value, float)}
    assert used & ROUNDED == set()
    assert len(used) > 15
    with pytest.raises(RequestError, match=r"hoffmann_rounded.*92\.6.*58\.9"):
        laws.fit("hoffmann_rounded")


def test_what_the_refusal_says_is_true():
    rounded = dataclasses.replace(HOFFMANN, a=406.4, b=410.7, e=1.69, alpha=0.34, beta=0.28)
    assert f"{rounded.optimum(5.76e23).ratio:.1f}" == "92.6"


def test_an_unknown_fit():
    with pytest.raises(RequestError, match="did you mean hoffmann"):
        laws.fit("hofman")


def test_every_fit_counts_its_own_parameters():
    size = Size(total=71_246_208, non_embedding=51_929_472)
    assert [laws.counted(fit, size) for fit in FITS] == [71_246_208] * 3
    assert laws.counted(KAPLAN, size) == 51_929_472
