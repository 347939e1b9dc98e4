"""Budgets as users write them."""

import pytest

from lit_small_lm.errors import RequestError
from lit_small_lm.planning import budget
from lit_small_lm.planning.devices import by_name

H100 = by_name("h100")


@pytest.mark.parametrize("text", ["1e19", "1e19flops", "1E19 FLOPs", "10_000_000_000_000_000_000", "1e19 flop"])
def test_flops(text):
    assert budget.read(text).on(None) == 1e19


@pytest.mark.parametrize("text", ["8h", "8 hours", "8.0 H", "8hour"])
def test_hours(text):
    """Of the run: more devices do more in it."""
    found = budget.read(text)
    assert found.on(H100, utilisation=0.5) == pytest.approx(8 * 3600 * 989e12 / 2)
    assert found.on(H100, utilisation=0.5, count=4) == pytest.approx(4 * found.on(H100, utilisation=0.5))


@pytest.mark.parametrize("text", ["100$@2.5", "$100@2.5/h", "100 @ 2.5", "100 dollars @ $2.5/h", "$100@$2.5"])
def test_money(text):
    """Buys hours of devices: more of them work a shorter time."""
    found = budget.read(text)
    assert found.on(H100, utilisation=0.5) == pytest.approx(40 * 3600 * 989e12 / 2)
    assert found.on(H100, utilisation=0.5, count=4) == pytest.approx(found.on(H100, utilisation=0.5))


@pytest.mark.parametrize(
    "text", ["", "many", "8 days", "100$", "100@", "@2.5", "$100$@2", "1e19 tokens", "-8h", "8h h", "nan"]
)
def test_what_is_no_budget(text):
    with pytest.raises(
        RequestError, match=r"allowed: FLOPs \(1e19 or 1e19flops\), hours of the run \(8h\), or dollars"
    ):
        budget.read(text)


@pytest.mark.parametrize("text", ["0", "0h", "5$@0", "0$@2", "1e99"])
def test_amounts_have_a_range(text):
    with pytest.raises(RequestError, match="out of range; allowed: above 0, below 1e40"):
        budget.read(text)


@pytest.mark.parametrize("text", ["8h", "100$@2.5"])
def test_hours_and_money_need_a_device(text):
    with pytest.raises(RequestError, match="give --device"):
        budget.read(text).on(None)


def test_arithmetic_counts():
    assert budget.read("1h").on(by_name("t4"), "fp16", 1.0) == pytest.approx(3600 * 65e12)
    with pytest.raises(RequestError, match="no bf16 rate"):
        budget.read("1h").on(by_name("t4"))
