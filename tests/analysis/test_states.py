import math

import numpy as np
import pytest
import torch

from lit_small_lm.analysis.states import angular, by_size, gradients, profiled, readings, rescaled
from lit_small_lm.context import Context


@pytest.fixture
def inputs(make_subject):
    """The subject, and by hand the stream (L+1, P, D) at every data position, and which of them are last ones."""
    subject = make_subject()
    net, seen = subject.net, []
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in net.layers]
    hooks.append(net.close.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    states, last = [], []
    for question in subject.questions:
        seen.clear()
        with torch.no_grad():
            net(question.query.tokens, Context(question.query.visibility))
        states.append(torch.stack([x[question.data] for x in seen]))
        last.append(question.last[question.data])
    for hook in hooks:
        hook.remove()
    return subject, torch.cat(states, dim=1).numpy(), torch.cat(last).numpy()


def test_variance_update_and_influence_by_hand(inputs, tell):
    subject, states, _ = inputs
    found = profiled(subject, "causal", tell)
    assert found["variance"] == pytest.approx(states.var(axis=-1).mean(axis=1).tolist(), rel=1e-9)
    before, after = states[:-1], states[1:]
    norms = np.linalg.norm(before, axis=-1)
    update = (np.linalg.norm(after - before, axis=-1) / norms).mean(axis=1)
    assert found["update"] == pytest.approx(update.tolist(), rel=1e-9)
    cosine = (before * after).sum(-1) / norms / np.linalg.norm(after, axis=-1)
    assert found["influence"] == pytest.approx((1 - cosine).mean(axis=1).tolist(), rel=1e-9)
    assert all(error > 0 for error in found["variance_error"])


def test_angles_by_hand(inputs, tell):
    subject, states, last = inputs
    found = angular(subject, "causal", tell)
    for name, chosen in (("mean", np.ones_like(last)), ("last", last)):
        for a in range(5):
            for b in range(5):
                x, y = states[a][chosen], states[b][chosen]
                cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
                wanted = 0.0 if a == b else (np.arccos(cosine) / math.pi).mean()
                assert found[name]["distance"][a][b] == pytest.approx(wanted, rel=1e-7, abs=1e-7), (name, a, b)


def test_opposite_and_independent_directions(make_subject, tell):
    """Raw distances: 1 for opposite directions, a half for right angles."""
    subject = make_subject(layers=1)

    class Turn(torch.nn.Module):
        def forward(self, carry, ctx):
            return -carry

    subject.net.layers = torch.nn.ModuleList([Turn()])
    assert angular(subject, "causal", tell)["mean"]["distance"][0][1] == pytest.approx(1, abs=1e-7)


def test_a_layer_that_does_nothing_has_no_distance(make_subject, still, tell):
    subject = make_subject()
    still(subject.net.layers[2])
    distance = angular(subject, "causal", tell)["mean"]["distance"]
    assert distance[2][3] < 1e-7 < distance[1][2]
    assert profiled(subject, "causal", tell)["influence"][2] == pytest.approx(0, abs=1e-12)


def test_the_rescaled_view_is_by_row():
    distance = [[0.0, 0.1, 0.5], [0.1, 0.0, 0.3], [0.5, 0.3, 0.0]]
    assert by_size(distance) == [[0.1, 0.3], [0.5]]
    assert rescaled(by_size(distance)) == [pytest.approx([0, 1]), [0.0]]
    values = np.linspace(0, 1, 201) ** 3
    low, high = np.quantile(values, [0.01, 0.99])
    wanted = (values.clip(low, high) - low) / (high - low)
    assert rescaled([values.tolist()])[0] == pytest.approx(wanted.tolist(), rel=1e-9)


def test_gradients_by_hand(make_subject, tell):
    subject = make_subject()
    found = gradients(subject, tell)["norm"]
    assert all(parameter.grad is None for parameter in subject.net.parameters())
    net, total = subject.net, 0.0
    for question in subject.questions:
        query = question.query
        nats = net(query.tokens, Context(query.visibility), query.targets)
        total = total + nats[question.data].sum()
    loss = total / (4 * 24 - 3)
    for layer, norm in zip(net.layers, found, strict=True):
        parts = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
        assert norm == pytest.approx(torch.cat([part.flatten() for part in parts]).norm().item(), rel=1e-9)


def test_readings(make_subject):
    question = make_subject().questions.items[0]
    assert list(readings(question, "causal")) == ["last", "mean"]
    assert list(readings(question, "bidirectional")) == ["mean"]  # everything is scored: nothing stands out
