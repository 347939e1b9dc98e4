"""Typed reading of a config.json: absent fields take the public class's defaults, and every error names the field."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lit_small_lm.errors import RequestError, not_known, shown
from lit_small_lm.nn.mlp import Activation
from lit_small_lm.spec import bounds_text, within

T = TypeVar("T")
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Public names of activation functions -> ours. Those left out differ: `gelu_fast` rounds a constant, for one."""
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
"""Ours -> the public name that an exported config.json gets."""
MOST = 2**31
"""No count in a config.json is larger."""
FINITE = 1e300


class Settings:
    """The fields of a config.json, or of an object in it, with defaults; readers raise RequestError.

    Args:
        given: what the file says.
        defaults: the public class's own values of every field that is read.
        where: how an error begins.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any], where: str = "config.json") -> None:
        self.given, self.defaults, self.where = given, defaults, where

    def value(self, key: str) -> Any:
        """What the file says, or the default; null is a value."""
        return self.given[key] if key in self.given else self.defaults[key]

    def whole(self, key: str, low: int = 1, high: int = MOST) -> int:
        """A whole number within `low` and `high`."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refused(key, f"a whole number, at least {low}, at most {high}")
        return value

    def number(self, key: str, **bounds: float) -> float:
        """A finite number; `bounds` as in `spec.setting`: low, high, above, below."""
        value = self.value(key)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not -FINITE < value < FINITE or not within(value, bounds):
            raise self.refused(key, f"a number, {bounds_text(bounds)}" if bounds else "a finite number")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        return self.choice(key, {True: True, False: False})

    def choice(self, key: str, allowed: Mapping[Any, T]) -> T:
        """What `allowed` has for the field's value; names get the nearest known one in the error."""
        value = self.value(key)
        found = [kept for name, kept in allowed.items() if type(name) is type(value) and name == value]
        if found:
            return found[0]
        if isinstance(value, str):
            raise not_known(f"{self.where}: {key}", value, map(str, allowed))
        raise self.refused(key, ", ".join(map(json.dumps, allowed)))

    def activation(self, key: str) -> Activation:
        """Our name of an activation function."""
        return self.choice(key, ACTIVATIONS)

    def each(self, key: str, allowed: Mapping[Any, T], count: int) -> list[T]:
        """A list of `count` values or more, of which the first `count` are read as by `choice`."""
        values = self.value(key)
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < count:
            raise self.refused(key, f"a list of {count} values")
        items = {f"{key}[{i}]": value for i, value in enumerate(values[:count])}
        inner = Settings(items, {}, self.where)
        return [inner.choice(item, allowed) for item in items]

    def inside(self, key: str, defaults: Mapping[str, Any]) -> "Settings":
        """The fields of the object under a key."""
        value = self.value(key)
        if not isinstance(value, Mapping):
            raise self.refused(key, "an object")
        return Settings(value, defaults, f"{self.where}: {key}")

    def only(self, allowed: Mapping[str, Any]) -> None:
        """Refuse every field whose value is not the one value that we have."""
        for key, wanted in allowed.items():
            if self.given.get(key, wanted) != wanted:
                raise self.refused(key, json.dumps(wanted))

    def refused(self, key: str, allowed: str) -> RequestError:
        """The error for the value of a field."""
        value = self.given.get(key, self.defaults.get(key))
        return RequestError(f"{self.where}: {key}: {_shown(value)}; allowed: {allowed}")


def _shown(value: Any) -> str:
    """As JSON has it; Python refuses to print a number of thousands of digits."""
    try:
        return shown(json.dumps(value, default=str))
    except ValueError:
        return "a number of thousands of digits"
