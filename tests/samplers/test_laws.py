"""The law of every sampler that has one, by chi-square of thousands of texts against enumeration.

The networks are tables of random conditionals, so that no order of places gives the same law as another. Seeds are
fixed; a p-value above 1e-3 accepts, and one below 1e-6 is asked of laws that must differ.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.objectives.noise import CosineNoise, LinearNoise, LogLinearNoise, PolynomialNoise
from lit_small_lm.samplers.ancestral import Ancestral
from lit_small_lm.samplers.entropy_bound import EntropyBound
from lit_small_lm.samplers.factor import ConfidenceFactor
from lit_small_lm.samplers.first_hitting import FirstHitting
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.samplers.remasking import Remasking
from lit_small_lm.samplers.threshold import ConfidenceThreshold

oracle = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("oracle.py"))))
SOUND, WRONG, MANY = 1e-3, 1e-6, 4_000
START = (oracle.END,)


@pytest.fixture(scope="module")
def net():
    """Conditionals of three places after the document's start."""
    return oracle.Table(4)


def entropy(probs):
    return -sum(p * torch.tensor(p).log().item() for p in probs)


def by_certainty(net, rule, measure=lambda probs: 1 - max(probs)):
    """The plain definition: sort places by uncertainty, and let `rule(uncertainties)` say how many are filled."""

    def plan(canvas, places, step):
        found = {place: measure(list(net.probs(canvas, place).values())) for place in places}
        ordered = sorted(places, key=found.get)
        return [(1.0, tuple(ordered[: max(1, rule([found[place] for place in ordered]))]))]

    return plan


def threshold(value):
    return lambda found: sum(1 - u > value for u in found)


def factor(value):
    return lambda found: max([n for n, u in enumerate(found, 1) if (n + 1) * u < value], default=0)


def bound(value):
    return lambda found: max(n for n in range(1, len(found) + 1) if sum(found[:n]) - max(found[:n]) <= value)


def margin(probs):
    first, second = sorted(probs)[:-3:-1]
    return 1 - (first - second)


in_steps = oracle.in_steps
CASES = {
    "low confidence": (LowConfidence(), lambda net: by_certainty(net, lambda found: 1)),
    "two at a time": (LowConfidence(tokens=2), lambda net: by_certainty(net, lambda found: 2)),
    "all at once": (LowConfidence(tokens=99), lambda net: by_certainty(net, len)),
    "margin": (LowConfidence(by="margin"), lambda net: by_certainty(net, lambda found: 1, margin)),
    "entropy": (LowConfidence(by="entropy"), lambda net: by_certainty(net, lambda found: 1, entropy)),
    "threshold": (ConfidenceThreshold(threshold=0.6), lambda net: by_certainty(net, threshold(0.6))),
    "factor": (ConfidenceFactor(factor=1.2), lambda net: by_certainty(net, factor(1.2))),
    "entropy bound": (EntropyBound(bound=0.8), lambda net: by_certainty(net, bound(0.8), entropy)),
    "ancestral, linear": (Ancestral(steps=3), lambda net: in_steps([0, 1 / 3, 2 / 3, 1])),
    "ancestral, cosine": (Ancestral(steps=2, noise=CosineNoise()), lambda net: in_steps([0, 1 - 0.5**0.5, 1])),
    "ancestral, square": (
        Ancestral(steps=4, noise=PolynomialNoise()),
        lambda net: in_steps([0, 7 / 16, 3 / 4, 15 / 16, 1]),
    ),
    "ancestral, begun late": (
        Ancestral(steps=2, noise=LogLinearNoise(epsilon=0.4)),
        lambda net: in_steps([0.4, 0.7, 1]),
    ),
    "first hitting": (FirstHitting(), lambda net: oracle.any_order),
}


@pytest.mark.parametrize("case", CASES)
def test_texts_follow_the_law(net, case):
    sampler, plan = CASES[case]
    wanted = oracle.law(net, START, 3, plan(net))
    assert sum(wanted.values()) == pytest.approx(1, abs=1e-12)
    assert oracle.p_value(oracle.drawn(sampler, net, START, 3, MANY), wanted) > SOUND


@pytest.mark.parametrize("case", [case for case in CASES if case != "all at once"])
def test_the_laws_are_not_all_the_same(net, case):
    """What is drawn differs from the law of filling everything at once, so the test above can fail."""
    sampler, _ = CASES[case]
    at_once = oracle.law(net, START, 3, by_certainty(net, len))
    assert oracle.p_value(oracle.drawn(sampler, net, START, 3, MANY), at_once) < WRONG


def test_what_is_filled_before_given_text_never_ends_it(net):
    prompt = (*START, oracle.MASK, 4, oracle.MASK)
    wanted = oracle.law(net, prompt, 0, oracle.any_order, inside={1})
    texts = oracle.drawn(FirstHitting(), net, prompt, 0, MANY)
    assert (texts[:, 1] == 4).all() and not (texts[:, 0] == oracle.END).any()
    assert oracle.p_value(texts, wanted) > SOUND


def test_temperature_and_nucleus_change_each_conditional(net):
    """At one place a text is drawn from the sharpened, cut-off conditional."""
    prompt = (*START, 3, 5)
    probs = torch.tensor(list(net.probs((*prompt, oracle.MASK), 3).values())).double()
    sharp = probs.pow(1 / 0.5)
    order = sharp.argsort(descending=True)
    sharp[order[3:]] = 0
    wanted = {(3, 5, token): p for token, p in zip(oracle.REAL, (sharp / sharp.sum()).tolist(), strict=True) if p}
    texts = oracle.drawn(FirstHitting(temperature=0.5, top_k=3), net, prompt, 1, MANY)
    assert oracle.p_value(texts, wanted) > SOUND


def test_without_temperature_the_likeliest_tokens_stand(net):
    texts = oracle.drawn(LowConfidence(temperature=0), net, START, 3, 50)
    canvas = (*START, *[oracle.MASK] * 3)
    while oracle.MASK in canvas:
        open = [i for i in range(4) if canvas[i] == oracle.MASK]
        place = max(open, key=lambda i: max(net.probs(canvas, i).values()))
        probs = net.probs(canvas, place)
        canvas = (*canvas[:place], max(probs, key=probs.get), *canvas[place + 1 :])
    assert {oracle.truncated(tuple(text)) for text in texts.tolist()} == {oracle.truncated(canvas[1:])}


def test_one_step_draws_the_product_of_the_marginals(net):
    at_once = oracle.law(net, START, 3, by_certainty(net, len))
    texts = oracle.drawn(Ancestral(steps=1), net, START, 3, MANY)
    assert oracle.p_value(texts, at_once) > SOUND


def distance(first, second):
    """Total variation."""
    return sum(abs(first.get(text, 0) - second.get(text, 0)) for text in {*first, *second}) / 2


def test_ancestral_sampling_tends_to_first_hitting(net):
    """In law as steps grow, by enumeration; and draw for draw where steps are so fine that each fills one place."""
    limit = oracle.law(net, START, 3, oracle.any_order)
    found = [oracle.law(net, START, 3, in_steps([k / steps for k in range(steps + 1)])) for steps in (1, 4, 16, 64)]
    far = [distance(law, limit) for law in found]
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.1 and far[-1] < 0.02
    fine, exact = (oracle.drawn(sampler, net, START, 3, 200) for sampler in (Ancestral(steps=10**6), FirstHitting()))
    assert torch.equal(fine, exact)


REMASKING = {
    "cap": (Remasking(steps=4, remasked=0.3), [(0.3, 0.25), (0.3, (0.5 - 0.7 * 0.25) / 0.75)]),
    "share": (Remasking(steps=4, remasked=0.5, bounded_by="share"), [(0.5, 0.25), (0.5, (0.5 - 0.5 * 0.25) / 0.75)]),
}


@pytest.mark.parametrize("case", REMASKING)
def test_remasking_follows_its_law(case):
    net, (sampler, first) = oracle.Table(3), REMASKING[case]
    third = min(0.3, 0.5) if case == "cap" else 0.5 * 0.5
    rates = [*first, (third, (0.75 - (1 - third) * 0.5) / 0.5), (0.0, 1.0)]
    wanted = oracle.remasked_law(net, START, 2, rates)
    assert sum(wanted.values()) == pytest.approx(1, abs=1e-12)
    texts = oracle.drawn(sampler, net, START, 2, MANY)
    assert oracle.p_value(texts, wanted) > SOUND
    plain = oracle.law(net, START, 2, in_steps([0, 0.25, 0.5, 0.75, 1]))
    assert distance(wanted, plain) > 0.02 and oracle.p_value(texts, plain) < WRONG


@pytest.mark.parametrize("noise", [LinearNoise(), CosineNoise()])
def test_remasking_leaves_as_much_open_as_the_schedule_says(noise):
    """The expected share of open places after k steps is 1 - alpha, whatever is remasked."""
    for spec in (Remasking(steps=5, noise=noise), Remasking(steps=5, noise=noise, remasked=1.0, bounded_by="share")):
        held, t = 0.0, torch.linspace(1, 0, 6, dtype=torch.float64)
        for (again, fill), alpha in zip(spec.rates("cpu").tolist(), noise.alpha(t)[1:].tolist(), strict=True):
            assert 0 <= again <= 1 and 0 <= fill <= 1 + 1e-12
            held = held * (1 - again) + (1 - held) * fill
            assert held == pytest.approx(alpha, abs=1e-12)


def test_remasking_nothing_is_ancestral_sampling(net):
    wanted = oracle.law(net, START, 3, in_steps([0, 1 / 3, 2 / 3, 1]))
    assert oracle.p_value(oracle.drawn(Remasking(steps=3, remasked=0.0), net, START, 3, MANY), wanted) > SOUND
