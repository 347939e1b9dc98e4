"""Rotary positions in a config.json: `rope_parameters`, or `rope_theta` beside `rope_scaling` as older files have it.

YaRN also multiplies cosines and sines by a factor; on fully rotated heads that is a factor on the scores, its square.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_small_lm.hf.public import Unfit
from lit_small_lm.hf.settings import Settings
from lit_small_lm.nn.positions import Rotary
from lit_small_lm.nn.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling
from lit_small_lm.plugin import RotaryScaling

DEFAULTS = {
    "factor": None,
    "low_freq_factor": None,
    "high_freq_factor": None,
    "attention_factor": None,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions as a config.json describes them."""

    positions: Rotary
    amplitude: float = 1.0
    """What cosines and sines are multiplied with (YaRN)."""

    def scale(self, head_dim: int) -> float | None:
        """The factor on the scores of fully rotated heads that the amplitude amounts to; None: the usual one."""
        return None if self.amplitude == 1 else self.amplitude**2 / math.sqrt(head_dim)


def amplitude_of(scale: float, head_dim: int) -> float:
    """The amplitude that a factor on the scores of fully rotated heads amounts to."""
    return math.sqrt(scale * math.sqrt(head_dim))


def read_rope(s: Settings, theta: float, share: float | None = None, given: Any = None) -> Rope:
    """The rotary positions of a config.json.

    Args:
        s: its fields.
        theta: the public class's default base.
        share: the class's default share of a head that is rotated; None: the class rotates whole heads.
        given: the object that describes them, where a class has several; None: the usual place.
    """
    key = "rope_scaling" if s.given.get("rope_scaling") else "rope_parameters"
    found = s.given.get(key) or {} if given is None else given
    if not isinstance(found, Mapping):
        raise s.refused(key, "an object")
    usual = {
        **DEFAULTS,
        "rope_theta": s.given.get("rope_theta", theta),
        "rope_type": found.get("type", "default"),
        "partial_rotary_factor": s.given.get("partial_rotary_factor", 1.0 if share is None else share),
        "original_max_position_embeddings": s.value("max_position_embeddings"),
    }
    top = s.given.get("original_max_position_embeddings")
    inner = Settings({**found, **({} if top is None else {"original_max_position_embeddings": top})}, usual)
    inner.where = f"{s.where}: {key}"
    part = inner.number("partial_rotary_factor", above=0, high=1)
    if share is None and part != 1:
        raise inner.refused("partial_rotary_factor", "1; this class rotates whole heads")
    scaling, amplitude = inner.choice("rope_type", READERS)(inner)
    return Rope(Rotary(base=inner.number("rope_theta", above=0), share=part, scaling=scaling), amplitude)


def _plain(s: Settings) -> tuple[None, float]:
    return None, 1.0


def _linear(s: Settings) -> tuple[LinearScaling, float]:
    return LinearScaling(factor=s.number("factor", low=1)), 1.0


def _llama3(s: Settings) -> tuple[Llama3Scaling, float]:
    low = s.number("low_freq_factor", above=0)
    scaling = Llama3Scaling(
        factor=s.number("factor", low=1),
        low_freq_factor=low,
        high_freq_factor=s.number("high_freq_factor", above=low),
        original_length=s.whole("original_max_position_embeddings"),
    )
    return scaling, 1.0


def _yarn(s: Settings) -> tuple[YarnScaling, float]:
    slow = s.number("beta_slow", above=0)
    scaling = YarnScaling(
        factor=s.number("factor", low=1),
        original_length=s.whole("original_max_position_embeddings"),
        fast_turns=s.number("beta_fast", above=slow),
        slow_turns=slow,
        borders="whole" if s.flag("truncate") else "exact",
    )
    return scaling, _amplitude(s, scaling.factor)


def _amplitude(s: Settings, factor: float) -> float:
    """What YaRN multiplies cosines and sines with; two of its variants set it by ratios."""
    if s.value("attention_factor") is not None:
        return s.number("attention_factor", above=0)
    if s.value("mscale") and s.value("mscale_all_dim"):
        return yarn_growth(factor, s.number("mscale")) / yarn_growth(factor, s.number("mscale_all_dim"))
    return yarn_growth(factor)


def yarn_growth(factor: float, slope: float = 1.0) -> float:
    """1 + 0.1 slope ln(factor): how YaRN's temperature grows with the factor."""
    return 1.0 + 0.1 * slope * math.log(factor)


READERS: dict[str, Callable[[Settings], tuple[RotaryScaling | None, float]]] = {
    "default": _plain,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def write_rope(positions: Rotary, amplitude: float = 1.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a config.json. Raises Unfit for a scaling that no public class has."""
    return {"rope_theta": positions.base, "rope_scaling": _written(positions.scaling, amplitude)}


def _written(scaling: RotaryScaling | None, amplitude: float) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "attention_factor": amplitude,
                "beta_fast": scaling.fast_turns,
                "beta_slow": scaling.slow_turns,
                "original_max_position_embeddings": scaling.original_length,
                "truncate": scaling.borders == "whole",
            }
    raise Unfit(f"positions.scaling {type(scaling).__name__} is in no public class")
