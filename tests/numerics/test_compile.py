"""A compiled network is the same network: outputs, gradients and names of its weights."""

import dataclasses
import shutil
from functools import partialmethod

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.batch import Query
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.compiled import compile_network

DIMS = FixedShape(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, hidden=32).resolve()
FAMILIES = {
    "default": BackboneSpec(),
    "canon": BackboneSpec(norm=LayerNormScaling(), layer=LayerSpec(canon_at="ABCD")),
    "hybrid": BackboneSpec(
        layer=LayerSpec(mixer=Attention(window=4)),
        more_layers={"conv": LayerSpec(mixer=ShortConv())},
        pattern=("conv", "layer"),
    ),
    "value residual": BackboneSpec(layer=LayerSpec(mixer=Attention(v_norm=LayerNorm(), value_residual="learned"))),
    "GPT-2": BackboneSpec(
        norm=PostNorm(norm=LayerNorm()),
        layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
        positions=Learned(length=32),
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def counting(monkeypatch):
    """Layers are compiled to what counts its graphs, and runs them as they are."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=counter))
    return counter


def losses(net, kind="causal", packed=True):
    """Losses of one batch and the gradients of their mean."""
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
    docs = torch.tensor([[0] * 4 + [1] * 5, [2] * 9]) if packed else None
    net.zero_grad()
    nll = net(tokens, Context(Visibility.rows(tokens, docs, kind)), tokens.roll(-1, 1))
    nll.mean().backward()
    return nll.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def compare(spec, backend, dims=DIMS, **question):
    torch.manual_seed(0)
    net = Backbone(spec, dims, 50).double()
    keys = list(net.state_dict())
    nll, gradients = losses(net, **question)
    net.compile(fullgraph=True, backend=backend)
    compiled, compiled_gradients = losses(net, **question)
    assert list(net.state_dict()) == keys
    assert compiled_gradients.keys() == gradients.keys()
    torch.testing.assert_close(compiled, nll, rtol=1e-10, atol=1e-12)  # float64; kernels may be fused or reordered
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_compiled_in_place_in_one_graph(spec, packed):
    compare(spec, "aot_eager", packed=packed)


def test_compiled_bidirectional():
    compare(FAMILIES["canon"], "aot_eager", kind="bidirectional")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_compiled_to_native_code():
    compare(FAMILIES["canon"], "inductor", dims=dataclasses.replace(DIMS, n_layers=1))


def test_compiled_once_for_many_batches():
    """Further batches of the same shape must not compile again; a recompilation raises here."""
    net = Backbone(FAMILIES["canon"], DIMS, 50)
    net.compile(fullgraph=True, backend="eager")
    losses(net)
    with torch.compiler.set_stance("fail_on_recompile"):
        losses(net)
        losses(net)


def test_a_loss_term_is_recorded_by_a_compiled_network_too():
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(z_loss=0.01), DIMS, 50).double()
    tokens = torch.randint(50, (2, 9))

    def run():
        ctx = Context(Visibility.rows(tokens))
        net.zero_grad()
        nll, term = net(tokens, ctx, tokens), ctx.trace.token_losses["z_loss"]
        (nll + term).mean().backward()
        return nll.detach(), term.detach(), net.embed.weight.grad.clone()

    plain = run()
    net.compile(fullgraph=True, backend="aot_eager")
    for found, wanted in zip(run(), plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def summed(net, seed):
    """The mean nats of one batch and their gradients, by the path that training takes."""
    tokens = torch.randint(50, (2, 10), generator=torch.Generator().manual_seed(seed))
    query = Query(tokens[:, :-1], Visibility.rows(tokens[:, :-1]), tokens[:, 1:], torch.rand(2, 9).double())
    ctx = query.summed(torch.tensor(seed))
    net.zero_grad()
    net(query.tokens, ctx, query.targets)
    ctx.trace.nats.backward()
    return ctx.trace.nats.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def compare_summed(spec, mode, depth):
    torch.manual_seed(0)
    net = Backbone(spec, dataclasses.replace(DIMS, n_layers=depth), 50).double()
    torch.manual_seed(1)
    plain = [summed(net, seed) for seed in (1, 2)]
    compile_network(net, mode)
    torch.manual_seed(1)
    for (nats, gradients), (found, compiled) in zip(plain, [summed(net, seed) for seed in (1, 2)], strict=True):
        torch.testing.assert_close(found, nats, rtol=1e-10, atol=1e-12)
        for name, gradient in gradients.items():
            torch.testing.assert_close(compiled[name], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("family", ["default", "canon"])
def test_layers_of_one_kind_are_compiled_once(counting, family):
    """The first layer makes what all share (the rotary table), and so has a graph of its own. Factors of LayerNorm
    Scaling differ by layer, and cost no graph."""
    compare_summed(FAMILIES[family], "layers", depth=6)
    assert counting.frame_count == 2


@torch._dynamo.config.patch(recompile_limit=2)
def test_layers_that_differ_are_all_compiled(counting):
    """Each layer records a loss of its own name; past the compiler's own limit they would run uncompiled."""
    experts = MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=1), n_experts=2)
    compare_summed(BackboneSpec(layer=LayerSpec(ffn=experts)), "layers", depth=3)
    assert counting.frame_count > 2


def test_the_summed_loss_is_compiled_with_the_network(counting):
    compare_summed(FAMILIES["default"], "default", depth=2)
    assert counting.frame_count == 1


@torch._functorch.config.patch(ban_recompute_materialized_backward=True)
def test_a_compiled_network_keeps_no_more_than_its_products_need():
    """What norms and the gated MLP give to products is computed from their inputs once more."""
    dims, rows = dataclasses.replace(DIMS, n_layers=4), torch.zeros(2, 64, dtype=torch.long)
    net = Backbone(FAMILIES["default"], dims, 50)
    default = bytes_kept(net, rows)
    compile_network(net, "default")
    torch.compiler.reset()
    assert bytes_kept(net, rows) < 0.8 * default


def bytes_kept(net, rows):
    """For the backward pass of a compiled network, its parameters not counted."""
    net.compile(backend="aot_eager_decomp_partition")
    storages, own = {}, {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(rows, Query(rows, Visibility.rows(rows), rows).context(), rows)
    return sum(size for place, size in storages.items() if place not in own)
