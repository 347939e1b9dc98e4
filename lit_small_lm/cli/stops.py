"""Where a run ends: after steps, epochs or training tokens, whichever the configuration names."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lit_small_lm.data.datamodule import rows_of_a_step
from lit_small_lm.data.plan import Pace, Warmup
from lit_small_lm.errors import RequestError

UNSET = {"trainer.max_steps": (-1, None), "trainer.max_epochs": (-1, None), "max_tokens": (None,)}
"""The keys that end a run, and their values that do not."""


def given(config: Mapping[str, Any]) -> list[str]:
    """Which keys of a configuration end the run."""
    return [key for key, value in _values(config).items() if value not in UNSET[key]]


def twice_as_long(config: Mapping[str, Any]) -> str:
    """The option that makes a run twice as long as its configuration says."""
    key = given(config)[0]
    return f"--{key} {2 * _values(config)[key]}"


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = config["trainer"]
    steps = {"trainer.max_steps": trainer["max_steps"], "trainer.max_epochs": trainer["max_epochs"]}
    return {**steps, "max_tokens": config.get("max_tokens")}


def check(config: Mapping[str, Any]) -> None:
    """Raise RequestError unless exactly one key ends the run; trainer.max_time, above 0, may stand beside it."""
    keys, limit = given(config), config["trainer"]["max_time"]
    spent = isinstance(limit, str) and not set("123456789") & set(limit)
    if spent or (isinstance(limit, Mapping) and not _lasts(limit)):
        raise RequestError(f"trainer.max_time: {limit!r}; allowed: more than no time, as DD:HH:MM:SS")
    if not keys:
        raise RequestError(
            "trainer.max_steps: not given; a run needs trainer.max_steps, trainer.max_epochs or max_tokens"
        )
    if len(keys) > 1:
        off = f"--{keys[0]} {'null' if UNSET[keys[0]][0] is None else -1}"
        raise RequestError(f"{' and '.join(keys)}: each ends the run; give one of them ({off} takes the first back)")


def _lasts(limit: Mapping[str, Any]) -> bool:
    """Whether `{days: 1, hours: 2}` is some time at all."""
    try:
        return timedelta(**limit) > timedelta()
    except (TypeError, OverflowError):
        return False


def steps_of(config: Mapping[str, Any]) -> int:
    """The steps of a run by its configuration as plain data; -1 if they depend on the data."""
    if config.get("max_tokens") is None:
        return config["trainer"]["max_steps"]
    data = config["data"]
    warmup = Warmup.from_dict(data["warmup"]) if data.get("warmup") else Warmup()
    rows = rows_of_a_step(data["seq_len"], data.get("batch_size"), data.get("batch_tokens"))
    return Pace(rows, data["seq_len"], warmup).steps_of_tokens(config["max_tokens"])
