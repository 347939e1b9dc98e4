"""Every family, with every objective and Canon layers at every place: built without storage, trained for a few steps.

Families are the files of `configs/families`, objectives whatever is known; later ones join by themselves.
"""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, check_fit, size_of
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.outputs import check_outputs
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Batch, Dims, Objective, Specials, known
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.score import weighted_sum

FAMILIES = sorted((Path(__file__).parents[2] / "configs" / "families").glob("*.yaml"))
CANON = ("", "AC", "ABC", "ABCD")
VOCAB, TIME = 31, 12
discover()
OBJECTIVES = {name: cls for name, cls in known(Objective).items() if cls.__module__.startswith("lit_small_lm.")}


@cache
def family(file: Path) -> BackboneSpec:
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(file)]
    return BackboneSpec.from_dict(check_request(argv, roots()).tree["model"]["init_args"]["backbone"])


def tiny(spec: BackboneSpec) -> Dims:
    """Small widths, and a depth at which every kind of layer occurs."""
    kinds = spec.first + spec.pattern
    depth = max(kinds.index(name) for name in kinds) + 1
    return Dims(dim=16, n_layers=max(2, depth), n_heads=4, n_kv_heads=2, head_dim=8, hidden=24)


def with_canon(spec: BackboneSpec, letters: str) -> BackboneSpec:
    """The family with Canon layers in every kind of layer."""
    bare = {name: dataclasses.replace(kind, canon_at=None) for name, kind in spec.more_layers.items()}
    layer = dataclasses.replace(spec.layer, canon_at=None)
    return dataclasses.replace(spec, layer=layer, more_layers=bare, canon_at=letters)


def batch() -> Batch:
    """Two rows of two documents each, the end of the second one padding."""
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, VOCAB, (2, TIME + 1), generator=draw)
    docs = (torch.arange(TIME + 1) * 2 // TIME).clamp(max=1).repeat(2, 1)
    tokens[1, -3:], docs[1, -3:] = 1, -1
    specials = Specials(VOCAB, end=0, pad=1, mask=2)
    return Batch(tokens, docs, docs[:, 1:] >= 0, torch.arange(2), torch.arange(2), specials)


def loss_of(net: Backbone, objective: Objective) -> torch.Tensor:
    query = objective.query(batch(), (0, 0))
    ctx = query.context(torch.tensor(0))
    nll = net(query.tokens, ctx, query.targets, query.scored)
    return weighted_sum(nll, query) / query.tokens.numel() + sum(ctx.trace.losses.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("letters", CANON)
@pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
def test_trains(file, letters, objective):
    spec, ask = with_canon(family(file), letters), OBJECTIVES[objective]()
    dims = tiny(spec)
    try:
        check_outputs(check_fit(spec, dims), ask.kind)
    except RequestError as error:
        assert str(error).startswith("canon_at: D has no place in a layer of ") and " with MoE" in str(error)
        return
    spec.refuse_kind(ask.kind)
    torch.manual_seed(0)
    net = Backbone(spec, dims, VOCAB)
    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = AdamW(lr=0.01).build(list(net.named_roles()), fused=False)
    losses = []
    for _ in range(4):
        loss = loss_of(net, ask)
        loss.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, parameter in net.named_parameters() if torch.equal(parameter, start[name])] == []


@pytest.mark.parametrize("letters", ["", "AC"])
@pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
def test_counted_on_one_layer_of_each_kind_as_on_all(file, letters):
    spec = with_canon(family(file), letters)
    dims = dataclasses.replace(tiny(spec), n_layers=tiny(spec).n_layers + 5)
    assert size(Outline(spec, dims, VOCAB)) == size_of(spec, dims, VOCAB)
