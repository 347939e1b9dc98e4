"""Jacobian, logit lens, outliers and noise."""

import math

import pytest
import torch

from lit_small_lm.analysis.extremes import noised, outlying_activations, outlying_weights, with_noise
from lit_small_lm.analysis.jacobian import jacobians
from lit_small_lm.analysis.lens import compared, lens
from lit_small_lm.analysis.questions import ask
from lit_small_lm.analysis.subject import Subject, Variant
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.context import Context
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.objectives.next_token import NextToken


def test_jacobians_against_the_whole_matrix(make_net, make_batch, tell):
    subject = Subject(make_net(layers=2), ask(NextToken(), [make_batch(rows=2, length=6, padding=0)], 0, draws=1))
    found = jacobians(subject, probes=200, tell=tell)
    (question,) = subject.questions
    for index, layer in enumerate(subject.net.layers):
        states = []
        hook = layer.register_forward_pre_hook(lambda _, args, into=states: into.append(args[0]))
        with torch.no_grad():
            subject.net(question.query.tokens, Context(question.query.visibility))
        hook.remove()
        wanted = torch.autograd.functional.jacobian(
            lambda x, layer=layer: layer(x, Context(question.query.visibility)), states[0]
        ).reshape(2 * 6 * 16, -1)
        distance = ((wanted - torch.eye(len(wanted))).square().sum() / len(wanted)).sqrt().item()
        diagonal = wanted.diagonal().mean().item()
        assert found["distance"][index] == pytest.approx(distance, rel=0.07)
        assert found["diagonal"][index] == pytest.approx(diagonal, abs=0.1)
        assert found["distance_error"][index] > 0


def test_the_identity_has_no_distance(make_subject, still, tell):
    subject = make_subject()
    still(subject.net.layers[1])
    found = jacobians(subject, 1, tell)
    assert found["distance"][1] == 0 and found["diagonal"][1] == 1 and found["diagonal_error"][1] == 0
    assert found["distance"][0] > 0.1
    assert jacobians(subject, 1, tell) == found
    assert jacobians(make_subject(seed=1), 1, tell) != found


def test_no_jacobian_without_one_stream(make_subject, tell):
    with pytest.raises(RequestError, match="several tensors"):
        jacobians(make_subject(BackboneSpec(norm=AttentionResiduals())), 1, tell)


def test_the_lens_ends_where_the_network_does(make_subject, tell):
    subject = make_subject()
    found = lens(subject, tell)
    assert found["loss"][-1] == pytest.approx(subject.loss(subject.full).value, rel=1e-6)
    assert found["divergence"][-1] == 0 and found["overlap"][-1] == 1
    for count in range(4):
        order = tuple(range(count))
        assert found["loss"][count] == pytest.approx(subject.loss(subject.nats([Variant(order)])[0]).value, rel=1e-9)
    assert min(found["divergence"][:-1]) > 0 and max(found["overlap"][:-1]) < 1


def test_divergence_and_overlap_by_hand():
    here = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]]).log()
    end = torch.tensor([[0.1, 0.2, 0.3, 0.2, 0.15, 0.05]]).log()
    divergence, overlap = compared(here, end)
    wanted = sum(p * math.log(p / q) for p, q in zip(here.exp()[0].tolist(), end.exp()[0].tolist(), strict=True))
    assert divergence.item() == pytest.approx(wanted, rel=1e-5)
    assert overlap.item() in (pytest.approx(1.0), pytest.approx(0.8))
    moved = torch.tensor([[0.01, 0.2, 0.1, 0.1, 0.05, 0.54]]).log()
    assert compared(moved, torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.06, 0.04]]).log())[1].item() == pytest.approx(0.8)


def test_a_planted_weight_stands_out(make_subject):
    subject = make_subject()
    before = outlying_weights(subject)
    weight = subject.net.layers[2].ffn.down_proj.weight
    with torch.no_grad():
        weight[0, 0] = 40 * weight.std()
    found = outlying_weights(subject)
    flat = weight.detach().flatten()
    wanted = ((flat - flat.mean()).abs() / flat.std(unbiased=False)).max().item()
    assert found["largest"][2] == pytest.approx(wanted, rel=1e-9) and wanted > 10 > max(before["largest"])
    assert found["kurtosis"][2] > 2 * before["kurtosis"][2] and found["share"][2] > 0 == before["share"][2]
    assert found["largest"][:2] == before["largest"][:2]


def test_a_planted_activation_stands_out(make_subject, tell):
    subject = make_subject()
    plain = outlying_activations(subject, tell)

    class Spike(torch.nn.Module):
        def forward(self, x, ctx):
            return torch.cat([x[..., :1] + 1e4, x[..., 1:]], dim=-1)

    subject.net.layers[1] = Spike()
    found = outlying_activations(subject, tell)
    assert found["largest"][1] == plain["largest"][1] and found["largest"][2] > 9e3
    assert found["median"][2] < 10 and found["kurtosis"][2] == pytest.approx(14.07, abs=0.1)  # one channel of 16


def test_noise_of_the_size_asked_for(make_subject):
    layer = make_subject().net.layers[1]
    noisy = with_noise(layer, 0.1, (0, "noise"))
    for (name, weight), (_, other) in zip(layer.named_parameters(), noisy.named_parameters(), strict=True):
        off = (other - weight).std() / weight.std()
        assert off == 0 if weight.ndim < 2 else 0.08 < off < 0.12, name
    again = with_noise(layer, 0.1, (0, "noise"))
    assert all(map(torch.equal, noisy.state_dict().values(), again.state_dict().values()))


def test_noise_costs_by_hand(make_subject, tell):
    subject = make_subject()
    found = noised(subject, 0.5, 2, tell)
    net, own, tokens = subject.net, list(subject.net.layers), subject.questions.tokens.sum()
    for index in range(4):
        total = 0.0
        for draw in range(2):
            net.layers[index] = with_noise(own[index], 0.5, (0, "noise", index, draw))
            total += (subject.nats([Variant((0, 1, 2, 3))])[0] - subject.full).sum() / tokens / 2
            net.layers[index] = own[index]
        assert found["rise"][index] == pytest.approx(total.item(), rel=1e-9)
    tiny = noised(subject, 1e-6, 1, tell)
    assert max(map(abs, tiny["rise"])) < 1e-4 < max(map(abs, found["rise"]))
