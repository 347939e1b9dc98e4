import pytest
import torch

from lit_small_lm.analysis.sparsity import (
    allocated,
    costs,
    make_sparse,
    shares,
    sparse,
    two_of_four,
    whole_costs,
    zeros,
)
from lit_small_lm.analysis.subject import Variant
from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.routers import SoftmaxRouter


def test_the_smallest_weights_go(make_net):
    layer = make_net().layers[1]
    found = sparse(layer, 0.3, "unstructured")
    before, after = layer.ffn.down_proj.weight, found.ffn.down_proj.weight
    count = round(0.3 * before.numel())
    edge = before.abs().flatten().kthvalue(count).values
    assert torch.equal(after, torch.where(before.abs() > edge, before, 0.0))
    assert (after == 0).sum() == count
    assert {name for name, _ in found.named_parameters()} == {name for name, _ in layer.named_parameters()}
    assert (layer.ffn.down_proj.weight != 0).all()
    assert zeros([found]) == pytest.approx(0.3, abs=0.002) and zeros([layer]) == 0


def test_two_of_every_four_stay(make_net):
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.1, 0.2, -0.4, 0.3]])
    assert two_of_four(weight).tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]
    found = sparse(make_net().layers[0], 0.5, "2:4")
    fours = found.mixer.qkv_proj.weight.unflatten(-1, (-1, 4))
    assert ((fours == 0).sum(-1) == 2).all() and zeros([found]) == 0.5
    with pytest.raises(RequestError, match="2:4 needs inputs in fours; a matrix here has 6"):
        two_of_four(torch.ones(2, 6))


def test_experts_are_pruned_too(make_net):
    ffn = MoE(expert=GatedMLP(), router=SoftmaxRouter(), n_experts=4, expert_hidden=8)
    layer = make_net(BackboneSpec(layer=LayerSpec(ffn=ffn))).layers[0]
    found = sparse(layer, 0.5, "unstructured")
    assert [float((expert.down_proj.weight == 0).double().mean()) for expert in found.ffn.experts] == [0.5] * 4


@pytest.mark.parametrize("mean", [0.05, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("weights", [[10, 10, 10, 10], [40, 10, 10, 20]], ids=str)
def test_shares_have_the_mean_asked_for(mean, weights):
    for ranks in ([0, 1, 2, 3], [3, 0, 2, 1], [0, 0, 0, 0]):
        found = shares(mean, ranks, weights)
        assert sum(s * w for s, w in zip(found, weights, strict=True)) / sum(weights) == pytest.approx(mean)
        assert min(found) >= 0 and max(found) <= 1
        order = sorted(range(4), key=lambda i: ranks[i])
        steps = [found[b] - found[a] for a, b in zip(order, order[1:], strict=False)]
        assert steps == pytest.approx([0.0] * 3) if not any(ranks) else min(steps) > 0


def test_who_gives_most():
    costs_alone, weights = [0.5, 0.1, 0.9, 0.2], [1, 1, 1, 1]
    assert allocated("uniform", 0.4, costs_alone, weights) == pytest.approx([0.4] * 4)
    assert allocated("increasing", 0.5, costs_alone, weights) == pytest.approx([0.25, 5 / 12, 7 / 12, 0.75])
    assert allocated("measured", 0.5, costs_alone, weights) == pytest.approx([5 / 12, 0.75, 0.25, 7 / 12])
    assert allocated("increasing", 0.5, [0.0], [7]) == pytest.approx([0.5])


def test_costs_by_sparsity_and_depth(make_subject, tell):
    subject = make_subject()
    found = costs(subject, [0.2, 0.6], "unstructured", tell)
    own, total = list(subject.net.layers), subject.questions.tokens.sum()
    for level, row in zip((0.2, 0.6), found["rise"], strict=True):
        for index in range(4):
            subject.net.layers[index] = sparse(own[index], level, "unstructured")
            nats = subject.nats([Variant((0, 1, 2, 3))])[0]
            subject.net.layers[index] = own[index]
            assert row[index] == pytest.approx(((nats - subject.full).sum() / total).item(), rel=1e-9)
    plan = [0.1, 0.2, 0.3, 0.4]
    whole = whole_costs(subject, [[0.0] * 4, plan], "unstructured")
    assert whole["rise"][0] == 0
    make_sparse(subject, plan, "unstructured")
    nats = subject.nats([Variant((0, 1, 2, 3))])[0]
    assert whole["rise"][1] == pytest.approx(subject.rise(nats).value, rel=1e-9)
    assert zeros(list(subject.net.layers)) == pytest.approx(0.25, abs=0.003)
