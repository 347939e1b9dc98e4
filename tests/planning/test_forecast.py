"""Bands over fits: what they cover, what they say, and that nothing is said where nothing is known."""

import csv
import statistics
from pathlib import Path

import pytest

from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning import forecast
from lit_small_lm.planning.forecast import TRANSFER, TYPICAL
from lit_small_lm.planning.laws import FITS
from lit_small_lm.plugin import Size

SMALL = Size(71_344_512, 52_027_776)
RUNS = Path(__file__).with_name("transfer_runs.csv")


@pytest.fixture(scope="module")
def runs():
    """(parameters, tokens, true loss) of runs that no fit has seen."""
    lines = [line for line in RUNS.read_text().splitlines() if not line.startswith("#")]
    return [tuple(float(row[key]) for key in ("params", "tokens", "loss")) for row in csv.DictReader(lines)]


def test_the_widening_is_what_was_missed(runs):
    missed = [true / fit.loss(n, d) for n, d, true in runs for fit in FITS]
    assert len(missed) == 102
    assert round(min(missed), 2) == TRANSFER.low
    assert round(max(missed), 2) == TRANSFER.high
    assert round(statistics.mean(abs(1 / ratio - 1) for ratio in missed), 3) == TYPICAL
    assert sum(ratio > 1 for ratio in missed) > 90  # "mostly too low"


def test_the_band_holds_those_runs(runs):
    for n, d, true in runs:
        band = forecast.loss(Size(int(n), int(n)), d, "exact").band
        assert band.low <= true <= band.high


def test_loss():
    found = forecast.loss(SMALL, 1e9, "exact")
    assert set(found.by_fit) == {"hoffmann", "besiroglu", "muennighoff"}
    assert (found.between.low, found.between.high) == (min(found.by_fit.values()), max(found.by_fit.values()))
    assert found.band.low < found.between.low < found.between.high < found.band.high
    assert found.apart["kaplan"] not in found.by_fit.values()
    said = " ".join(map(str, found.statements))
    assert "another corpus or tokenizer" in said and "C4, GPT-2 tokenizer" in said and "7.4%" in said


def test_repeated_tokens_are_spoken_of():
    once, often = (forecast.loss(SMALL, 8e9, "exact", unique=unique) for unique in (8e9, 1e9))
    assert often.by_fit["muennighoff"] > once.by_fit["muennighoff"]
    assert often.by_fit["hoffmann"] == once.by_fit["hoffmann"]
    assert "seen 8.0 times" in str(often.statements) and "seen" not in str(once.statements)


def test_experts_are_spoken_of():
    found = forecast.loss(SMALL, 1e9, "exact", total=Size(300_000_000, 280_000_000))
    assert "71,344,512 active parameters of 300,000,000" in str(found.statements)
    assert "no published law with the number of experts" in str(found.statements)
    assert "active" not in str(forecast.loss(SMALL, 1e9, "exact", total=SMALL).statements)


def test_optimum():
    found = forecast.optimum(1e18, "exact")
    assert (found.n.low, found.n.high) == pytest.approx((8.053e7, 9.466e7), rel=1e-3)
    assert (found.ratio.low, found.ratio.high) == pytest.approx((18.60, 25.70), rel=1e-3)
    assert found.d.low < found.d.high


def test_scarce_data_call_for_fewer_parameters():
    """Of repeated tokens and excess parameters, the fit lets parameters fade first."""
    plenty, scarce = forecast.optimum(1e19, "exact"), forecast.optimum(1e19, "exact", unique=1e9)
    assert scarce.by_fit["muennighoff"].n < plenty.by_fit["muennighoff"].n
    assert scarce.by_fit["hoffmann"] == plenty.by_fit["hoffmann"]


def test_tokens_for_a_network():
    found = forecast.tokens_for(Size(70_000_000, 50_000_000), "exact")
    assert (found.d.low, found.d.high) == pytest.approx((1.229e9, 1.811e9), rel=1e-3)
    assert found.ratio.low == pytest.approx(found.d.low / 70e6)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (1e8, "1e+08 tokens are 0.055 to 0.081 times what this network wants: a smaller one"),
        (1.5e9, "1.5e+09 tokens are 0.83 to 1.2 times what this network wants: the fits do not agree"),
        (1e10, "1e+10 tokens are 5.5 to 8.1 times what this network wants: a larger one"),
    ],
)
def test_how_a_network_is_fed(tokens, said):
    found = forecast.tokens_for(Size(70_000_000, 50_000_000), "exact")
    assert forecast.fed(tokens, found).text.startswith(said)
    assert forecast.fed(tokens, forecast.tokens_for(SMALL, "upper")) is None


def test_needs():
    tokens = forecast.tokens_to_reach(3.7, SMALL, "exact")
    assert tokens.band.low == min(reach.value for reach in tokens.by_fit.values())
    some = forecast.flops_to_reach(1.75, "exact")  # above hoffmann's floor alone
    assert [name for name, reach in some.by_fit.items() if reach.value is not None] == ["hoffmann"]
    assert some.band.low == some.band.high
    forecast.refuse_unreachable(1.75, some)


def test_what_cannot_be_reached_is_refused_with_the_floors():
    none = forecast.flops_to_reach(1.6, "exact")
    assert none.band is None
    with pytest.raises(
        RequestError, match=r"1\.6 nats .* not reachable at any size.*hoffmann 1\.693.*muennighoff 1\.869"
    ):
        forecast.refuse_unreachable(1.6, none)


def test_a_bound_gets_no_number():
    """Constants of next-token losses are never applied to an objective whose loss is an upper bound."""
    loss, tokens = forecast.loss(SMALL, 1e9, "upper"), forecast.tokens_for(SMALL, "upper")
    best, need = forecast.optimum(1e18, "upper"), forecast.flops_to_reach(3.0, "upper")
    assert (loss.by_fit, loss.apart, loss.between, loss.band) == ({}, {}, None, None)
    assert (tokens.by_fit, tokens.d, tokens.ratio) == ({}, None, None)
    assert (best.by_fit, best.n, best.d, best.ratio, need.by_fit, need.band) == ({}, None, None, None, {}, None)
    for found in (loss, tokens, best, need):
        assert "no published fit can be used" in found.statements[0].text
        assert all("arXiv" in statement.source for statement in found.statements[1:])
    forecast.refuse_unreachable(0.1, need)


def test_objectives_name_their_bound():
    assert forecast.usable(NextToken().bound) == FITS
