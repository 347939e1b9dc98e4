"""A step rehearsed without storage holds what the same step holds with it, for networks of any depth."""

import contextlib
import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.planning.ledger import Ledger
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.question import ask
from lit_small_lm.planning.rehearsal import COMPUTED_IN, rehearse, step
from lit_small_lm.planning.workload import Workload
from lit_small_lm.plugin import FFN, Dims, Linear
from lit_small_lm.training.muon import Muon
from lit_small_lm.training.optim import AdamW

DIMS = Dims(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, hidden=48)
VOCAB = 64
WORKLOAD = Workload(optim=AdamW(), seq_len=16, batch_size=4, rows=4)
ROUTER = SoftmaxRouter(top_k=2)


@dataclass(frozen=True, kw_only=True)
class ThreeMaps(FFN):
    """An expert that cannot be computed together with others."""

    def build(self, site):
        return ThreeMapsFFN(site)


class ThreeMapsFFN(nn.Module):
    def __init__(self, site):
        super().__init__()
        self.maps = nn.ModuleList(Linear(site.dim, site.dim, role="up") for _ in range(3))

    def forward(self, h, ctx):
        for one in self.maps:
            h = F.silu(one(h))
        return h


SPECS = {
    "plain": BackboneSpec(),
    "untied, windows": BackboneSpec(head="untied", layer=LayerSpec(mixer=Attention(window=4))),
    "Canon": BackboneSpec(canon_at="ABCD"),
    "parallel": BackboneSpec(norm=ParallelNorm()),
    "short convolutions": BackboneSpec(more_layers={"short": LayerSpec(mixer=ShortConv())}, pattern=("short", "layer")),
}
DEEP = {
    **SPECS,
    "experts": BackboneSpec(layer=LayerSpec(ffn=MoE(expert=GatedMLP(), router=ROUTER, n_experts=4))),
    "a source a branch": BackboneSpec(norm=AttentionResiduals()),
    "a source in three branches": BackboneSpec(norm=AttentionResiduals(branches_a_source=3)),
}


def ids(workload):
    """Bytes of the ids, documents and positions of a batch, which are there before the step or not."""
    return 8 * 8 * ask(workload.objective, workload.rows, workload.seq_len, VOCAB).tokens.numel()


def on_real_tensors(spec, workload):
    """(weights, gradients, state, activations, head) and the peaks of the three phases, with real memory."""
    query = ask(workload.objective, workload.rows, workload.seq_len, VOCAB)
    with Ledger() as ledger:
        net = Backbone(spec, DIMS, VOCAB).train()
        for layer in net.layers:
            layer.activation_checkpointing = workload.activation_checkpointing
        kept = {}
        net.close.register_forward_pre_hook(lambda *_: kept.update(closing=ledger.bytes))
        weights = sum(p.nbytes for p in net.parameters())
        optimizer = workload.optim.build(list(net.named_roles()), fused=True)
        for _ in range(2):  # gradients and state are there in the second one
            optimizer.zero_grad()
            peaks, begun = [], ledger.bytes
            ledger.mark()
            loss = forward(net, query, workload, kept, ledger)
            peaks.append(ledger.peak)
            ledger.mark()
            loss.backward()
            del loss
            peaks.append(ledger.peak)
            ledger.mark()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            peaks.append(ledger.peak)
    state = sum(value.nbytes for values in optimizer.state.values() for value in values.values())
    return weights, state, kept["closing"] - begun, kept["ended"] - kept["closing"], *peaks


def forward(net, query, workload, kept, ledger):
    dtype = COMPUTED_IN.get(workload.precision)
    with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
        ctx = query.summed()
        net(query.tokens, ctx, query.targets, query.scored)
        loss = ctx.trace.nats / query.tokens.numel()
        kept["ended"] = ledger.bytes
    return loss


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", SPECS)
def test_a_step_holds_what_it_holds_on_real_tensors(name, precision):
    same_as_on_real_tensors(SPECS[name], dataclasses.replace(WORKLOAD, precision=precision))


@pytest.mark.parametrize("objective", [MaskedDiffusion(), BlockDiffusion(block_size=4)])
def test_whatever_the_network_is_asked(objective):
    same_as_on_real_tensors(BackboneSpec(), dataclasses.replace(WORKLOAD, objective=objective))


def same_as_on_real_tensors(spec, workload):
    found = rehearse(Outline(spec, DIMS, VOCAB), workload)
    weights, state, activations, head, fore, back, update = on_real_tensors(spec, workload)
    assert (found.weights, found.gradients, found.optimizer) == (weights, weights, state)
    mine = (found.activations, found.head, found.forward, found.update)
    for expected, real in zip(mine, (activations, head, fore, update), strict=True):
        assert abs(expected - real) <= ids(workload)
    assert abs(found.backward - back) <= ids(workload) * DIMS.dim / 16  # norms without a kernel hold a (B, T, D) more


def test_activations_are_what_autograd_saves():
    """By saved-tensor hooks: storages, each once, weights and token ids apart; the mask of the row comes on top."""
    query, saved = ask(WORKLOAD.objective, 4, 16, VOCAB), {}
    net = Backbone(BackboneSpec(), DIMS, VOCAB).train()
    apart = {p.untyped_storage().data_ptr() for p in net.parameters()} | {query.tokens.untyped_storage().data_ptr()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept = {}
    net.close.register_forward_pre_hook(lambda *_: kept.update(closing=sum(saved.values())))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ctx = query.summed()
        net(query.tokens, ctx, query.targets)
    stream = 4 * WORKLOAD.rows * WORKLOAD.seq_len * DIMS.dim
    mask = WORKLOAD.rows * WORKLOAD.seq_len**2
    found = rehearse(Outline(BackboneSpec(), DIMS, VOCAB), WORKLOAD)
    assert 0 <= found.activations - (kept["closing"] + stream + mask) <= ids(WORKLOAD)
    assert ctx.trace.nats.requires_grad and found.activations + found.head > sum(saved.values())


@pytest.mark.parametrize("name", DEEP)
def test_deep_networks_are_worked_out_exactly(name):
    dims = dataclasses.replace(DIMS, n_layers=5)
    outline = Outline(DEEP[name], dims, VOCAB)
    for workload in (
        WORKLOAD,
        dataclasses.replace(WORKLOAD, precision="bf16-mixed", activation_checkpointing="layers"),
    ):
        assert rehearse(outline, workload) == step(lambda: outline.network(range(5)), workload)


def test_state_by_parameter():
    """AdamW keeps two numbers a weight, Muon one of a matrix; both count their steps."""
    outline = Outline(BackboneSpec(), DIMS, VOCAB)
    net = outline.network(range(3))
    every, tensors = sum(p.numel() for p in net.parameters()), len(list(net.parameters()))
    matrices = sum(p.numel() for layer in net.layers for p in layer.parameters() if p.ndim == 2)
    adam = rehearse(outline, WORKLOAD)
    assert (adam.weights, adam.gradients, adam.optimizer) == (4 * every, 4 * every, 8 * every + 4 * tensors)
    muon = rehearse(outline, dataclasses.replace(WORKLOAD, optim=Muon()))
    assert 0 <= muon.optimizer - (4 * matrices + 8 * (every - matrices)) <= 4 * tensors
    assert muon.update > muon.weights + muon.gradients + muon.optimizer


def test_pure_bfloat16_halves_everything_kept():
    outline = Outline(BackboneSpec(), DIMS, VOCAB)
    full, half = (rehearse(outline, dataclasses.replace(WORKLOAD, precision=p)) for p in ("32-true", "bf16-true"))
    assert (half.weights, half.gradients) == (full.weights // 2, full.gradients // 2)
    assert half.optimizer < 0.6 * full.optimizer
    assert half.activations < 0.7 * full.activations


def test_accumulated_batches_keep_the_gradients():
    """The first batch of a step begins without gradients, a later one with all of them."""
    outline = Outline(BackboneSpec(), DIMS, VOCAB)
    once = rehearse(outline, WORKLOAD)
    twice = rehearse(outline, dataclasses.replace(WORKLOAD, batch_size=8))
    assert 0 <= once.gradients - (twice.backward - once.backward) <= 4 * DIMS.dim  # of the last norm, taken by then
    assert twice.forward - once.forward == once.gradients


def test_checkpointing_keeps_the_input_of_every_layer():
    outline = Outline(BackboneSpec(), dataclasses.replace(DIMS, n_layers=6), VOCAB)
    shallow = Outline(BackboneSpec(), dataclasses.replace(DIMS, n_layers=5), VOCAB)
    layers = dataclasses.replace(WORKLOAD, activation_checkpointing="layers")
    stream = 4 * WORKLOAD.rows * WORKLOAD.seq_len * DIMS.dim
    assert rehearse(outline, layers).activations - rehearse(shallow, layers).activations == stream
    assert rehearse(outline, WORKLOAD).activations > 3 * rehearse(outline, layers).activations


def test_a_part_that_needs_values_is_told_that_there_are_none():
    """Experts that run one after the other want to know how many rows each has."""
    mixture = MoE(expert=ThreeMaps(), router=ROUTER, n_experts=4)
    found = rehearse(Outline(BackboneSpec(layer=LayerSpec(ffn=mixture)), DIMS, VOCAB), WORKLOAD)
    assert found.activations > 0


def test_experts_are_stacked_for_their_product():
    """While they are multiplied the matrices of all experts are there once more; they are not kept."""
    specs = [
        BackboneSpec(layer=LayerSpec(ffn=MoE(expert=GatedMLP(), router=ROUTER, n_experts=count))) for count in (4, 68)
    ]
    few, many = (rehearse(Outline(spec, DIMS, VOCAB), WORKLOAD) for spec in specs)
    stacked = 64 * 4 * 2 * DIMS.dim * DIMS.hidden  # gate and up of one layer, beyond those of four experts
    grown = many.weights + many.optimizer - few.weights - few.optimizer
    assert many.activations - few.activations < stacked / 4
    assert many.forward - few.forward - grown > stacked / 2
