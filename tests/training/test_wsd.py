"""The schedule is a pure function of the step."""

import math
from types import SimpleNamespace

import pytest

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import PostNorm, PreNorm
from lit_small_lm.training.callbacks.wsd import WSDSchedule


def factors(schedule, total):
    return [schedule.factor(step, total) for step in range(total)]


def test_warmup_rises_linearly_and_ends_at_the_base_rate():
    assert factors(WSDSchedule(warmup=4, decay=0), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warmup_and_decay_the_rate_is_constant_from_the_first_step():
    assert factors(WSDSchedule(warmup=0, decay=0), 5) == [1.0] * 5


def test_steps_and_fractions_say_the_same():
    in_steps, in_fractions = WSDSchedule(warmup=10, decay=40), WSDSchedule(warmup=0.05, decay=0.2)
    assert factors(in_steps, 200) == factors(in_fractions, 200)
    assert in_steps.decay_start(200) == 160


SHAPES = {
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "1-sqrt": lambda p: 1 - math.sqrt(p),
    "exponential": lambda p: 0.1**p,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_decay_follows_its_formula(shape):
    floor = 0.1
    schedule = WSDSchedule(warmup=0, decay=10, decay_shape=shape, floor=floor)
    found = factors(schedule, 30)
    assert found[:21] == [1.0] * 21  # the first step of the decay still has the full rate
    for step in range(20, 30):
        done = (step - 20) / 10
        wanted = SHAPES[shape](done) if shape == "exponential" else floor + (1 - floor) * SHAPES[shape](done)
        assert found[step] == pytest.approx(wanted, abs=1e-12)


def test_a_cosine_over_the_whole_run_starts_after_the_warmup():
    found = factors(WSDSchedule(warmup=2, decay=1.0, decay_shape="cosine"), 10)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert all(a > b for a, b in zip(found[2:], found[3:], strict=False))


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup": -1},
        {"decay": -0.1},
        {"decay": float("nan")},
        {"warmup": 1.5},
        {"floor": 2.0},
        {"decay_shape": "exponential"},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError, match="schedule"):
        WSDSchedule(**wrong)


def set_up(schedule, scheme, max_steps, stage="fit"):
    """What a run of this scheme, 3 layers deep, is told before it starts."""
    model = SimpleNamespace(backbone=BackboneSpec(norm=scheme), dims=SimpleNamespace(n_layers=3))
    schedule.setup(SimpleNamespace(max_steps=max_steps), model, stage)


@pytest.mark.parametrize(
    "scheme", [PostNorm(), MixNorm(), ProRes(scheme=PostNorm(), steps=1)], ids=lambda s: type(s).__name__
)
def test_a_scheme_that_needs_warm_up_says_so_without(scheme):
    with pytest.warns(UserWarning, match=f"schedule.warmup: 0 with {type(scheme).__name__}: .*"):
        set_up(WSDSchedule(warmup=0), scheme, 100)


def test_a_run_shorter_than_the_ramp_of_its_scheme_is_told():
    with pytest.warns(UserWarning, match="trainer.max_steps: 29 with ProRes, which fades branches in until step 30; "):
        set_up(WSDSchedule(), ProRes(scheme=PreNorm(), steps=10), 29)


def test_a_run_shorter_than_its_warm_up_is_told():
    with pytest.warns(UserWarning, match="schedule.warmup: 101 steps with trainer.max_steps 100; .* reach optim.lr"):
        set_up(WSDSchedule(warmup=101), PreNorm(), 100)


def test_nothing_is_said_where_nothing_is_wrong(recwarn):
    set_up(WSDSchedule(warmup=100), PreNorm(), 100)
    set_up(WSDSchedule(warmup=0.1), PostNorm(), 100)
    set_up(WSDSchedule(warmup=0), PreNorm(), 100)
    set_up(WSDSchedule(warmup=0), PostNorm(), 100, stage="test")
    for max_steps in (30, -1):
        set_up(WSDSchedule(), ProRes(scheme=PreNorm(), steps=10), max_steps)
    assert not recwarn.list
