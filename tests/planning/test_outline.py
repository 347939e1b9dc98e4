"""A network of few layers stands for one of many, exactly."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec, size_of
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.planning.counts import parameters, size
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import FFN, Dims, Linear
from lit_small_lm.shapes import BudgetShape

DIMS = Dims(dim=16, n_layers=7, n_heads=4, n_kv_heads=2, head_dim=4, hidden=24)
VOCAB = 40
MIXED = BackboneSpec(
    more_layers={"short": LayerSpec(mixer=ShortConv()), "canon": LayerSpec(canon_at="ABCD")},
    first=("canon",),
    pattern=("short", "short", "layer"),
)


@dataclass(frozen=True, kw_only=True)
class Growing(FFN):
    """A map that is wider in every layer."""

    def build(self, site):
        return GrowingFFN(site)


class GrowingFFN(nn.Module):
    def __init__(self, site):
        super().__init__()
        width = 8 * (site.layer + 1)
        self.up, self.down = Linear(site.dim, width, role="up"), Linear(width, site.dim, role="down")

    def forward(self, h, ctx):
        return self.down(self.up(h))


def whole(spec, dims=DIMS):
    with torch.device("meta"):
        return Backbone(spec, dims, VOCAB)


def test_layers_are_grouped_by_kind():
    groups = Outline(MIXED, DIMS, VOCAB).groups
    assert [group.members for group in groups] == [(0,), (1, 2, 4, 5), (3, 6)]
    assert [group.index for group in groups] == [0, 1, 3] and [group.count for group in groups] == [1, 4, 2]


def test_layers_that_differ_count_for_themselves():
    outline = Outline(BackboneSpec(layer=LayerSpec(ffn=Growing())), DIMS, VOCAB)
    assert [group.count for group in outline.groups] == [1] * 7
    assert size(outline).total == sum(p.numel() for p in whole(outline.spec).parameters())


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec(),
        MIXED,
        BackboneSpec(head="untied", canon_at="AC"),
        BackboneSpec(norm=AttentionResiduals()),
        BackboneSpec(layer=LayerSpec(ffn=Growing())),
    ],
    ids=["plain", "mixed", "untied", "attention residuals", "growing"],
)
def test_counts_are_those_of_the_whole_network(spec):
    found, net = parameters(Outline(spec, DIMS, VOCAB)), whole(spec)
    assert found.total == sum(p.numel() for p in net.parameters()) == sum(found.components.values())
    assert found.size == size(Outline(spec, DIMS, VOCAB)) == size_of(spec, DIMS, VOCAB)
    by_role = {}
    for parameter in net.named_roles():
        by_role[parameter.role] = by_role.get(parameter.role, 0) + parameter.tensor.numel()
    assert found.by_role == by_role


def test_canon_is_what_the_network_has_more_with_it():
    found = parameters(Outline(BackboneSpec(canon_at="ABCD"), DIMS, VOCAB))
    width = 16 + (4 + 2 * 2) * 4 + 16 + 2 * 24  # A, B over queries, keys and values, C, D over gate and up
    assert found.components["canon"] == 7 * 4 * width
    assert found.matmul == parameters(Outline(BackboneSpec(), DIMS, VOCAB)).matmul  # no matrix product multiplies it


def test_what_is_looked_at_is_no_network_of_anybody_else():
    outline = Outline(BackboneSpec(), DIMS, VOCAB)
    assert outline.sketch is outline.sketch
    assert outline.network([0]) is not outline.network([0])
    assert {p.device.type for p in outline.sketch.parameters()} == {"meta"}
    assert len(outline.network([0, 3, 3]).layers) == 3


def test_a_budget_is_solved_on_the_outline():
    shape = BudgetShape(params=200_000, n_layers=3, head_dim=8)
    spec = BackboneSpec(layer=LayerSpec(ffn=GatedMLP()))
    by_outline = shape.resolve(lambda dims: size(Outline(spec, dims, VOCAB)))
    assert by_outline == shape.resolve(lambda dims: size_of(spec, dims, VOCAB))
    assert dataclasses.asdict(by_outline)["n_layers"] == 3
