"""What a run may cost, as a user writes it: FLOPs, hours on a device, or money at an hourly price.

`1e19` or `1e19flops`; `8h`, `8 hours`; `100$@2.5`, `$100@2.5/h`. The unit is always there except for FLOPs.
"""

import re
from dataclasses import dataclass

from lit_small_lm.errors import RequestError, shown
from lit_small_lm.planning.devices import UTILISATION, Arithmetic, Device, rate

_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)"
_FLOPS = re.compile(rf"{_NUMBER}(?:flops?)?")
_HOURS = re.compile(rf"{_NUMBER}(?:h|hours?)")
_MONEY = re.compile(rf"(?:\${_NUMBER}|{_NUMBER}(?:\$|dollars?)?)@\$?{_NUMBER}(?:/h)?")
GRAMMAR = (
    "FLOPs (1e19 or 1e19flops), hours of the run (8h), or dollars at the price of one device for an hour (100$@2.5)"
)


@dataclass(frozen=True)
class ComputeBudget:
    """What a run may cost; exactly one of FLOPs, hours and money."""

    text: str
    """As it was written."""
    flops: float | None = None
    hours: float | None = None
    """Of the run, whatever the number of devices."""
    money: float | None = None
    price: float | None = None
    """Of one device for one hour, in the currency of `money`."""

    def on(
        self, device: Device | None, arithmetic: Arithmetic = "bf16", utilisation: float = UTILISATION, count: int = 1
    ) -> float:
        """The FLOPs it pays for on `count` devices at a share of their dense peak.

        Raises:
            RequestError: hours or money without a device, or a device that lacks the arithmetic.
        """
        if self.flops is not None:
            return self.flops
        if device is None:
            raise RequestError(f"--budget: {self.text}: how many FLOPs that is depends on the device; give --device")
        hours = self.hours if self.money is None else self.money / self.price / count
        return hours * 3600 * rate(device, arithmetic, utilisation, count)


def read(text: str) -> ComputeBudget:
    """Read a budget. Raises RequestError with the forms that are allowed."""
    plain, written = re.sub(r"[\s_,]", "", text.lower()), shown(text)
    if match := _FLOPS.fullmatch(plain):
        found = ComputeBudget(written, flops=float(match[1]))
    elif match := _HOURS.fullmatch(plain):
        found = ComputeBudget(written, hours=float(match[1]))
    elif match := _MONEY.fullmatch(plain):
        found = ComputeBudget(written, money=float(match[1] or match[2]), price=float(match[3]))
    else:
        raise RequestError(f"--budget: {written!r}; allowed: {GRAMMAR}")
    for amount in (found.flops, found.hours, found.money, found.price):
        if amount is not None and not 0 < amount < 1e40:
            raise RequestError(f"--budget: {written!r}: {amount:g} is out of range; allowed: above 0, below 1e40")
    return found
