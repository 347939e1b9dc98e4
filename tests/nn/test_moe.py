"""Mixtures of experts: the grouped path against the loop, gradients included, and everything a branch has to bear."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.routers import SigmoidRouter, SoftmaxRouter
from lit_small_lm.plugin import Dims, Routing, Site
from lit_small_lm.roles import Sparse

DIMS = Dims(dim=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)
SITE = Site(DIMS, 0, "ffn")
M = 14


def mixture(dtype=torch.float32, site=SITE, **settings):
    torch.manual_seed(0)
    spec = MoE(**{"expert": GatedMLP(), "router": SoftmaxRouter(), "n_experts": 5, **settings})
    return spec.build(site).to(dtype)


def positions(dtype=torch.float32):
    return torch.randn(2, M // 2, DIMS.dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


def context(h):
    return Context(Visibility.rows(h[..., 0]))


def some_routing(dtype):
    """Experts 0 and 4 get nothing, expert 2 most."""
    experts = torch.tensor([[2, 1]] * 9 + [[3, 2]] * 4 + [[1, 3]])
    return Routing(experts, torch.rand(M, 2, dtype=dtype, generator=torch.Generator().manual_seed(2)))


def by_hand(module, h, routing, ctx):
    """Position by position, expert by expert."""
    outs = []
    for position, experts, weights in zip(h, routing.experts.tolist(), routing.weights, strict=True):
        parts = [module.experts[e](position.view(1, 1, -1), ctx).view(-1) for e in experts]
        outs.append(sum(weight * part for weight, part in zip(weights, parts, strict=True)))
    return torch.stack(outs)


@pytest.mark.parametrize(
    "expert", [GatedMLP(), MLP(activation="relu2"), MLP(shift="bias")], ids=["gated", "plain", "bias"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("hidden", [24, 5])
def test_every_path_equals_the_formula(expert, dtype, tolerance, hidden):
    """Output and all gradients, those of experts that nothing is sent to included (they are zero, and there)."""
    module, routing = mixture(dtype, expert=expert, expert_hidden=hidden), some_routing(dtype)
    h = positions(dtype).flatten(0, 1).requires_grad_()
    ctx, weights = context(positions()), routing.weights.requires_grad_()
    inputs, probe = [h, weights, *module.experts.parameters()], torch.randn(M, DIMS.dim, dtype=dtype)
    wanted = by_hand(module, h, routing, ctx)
    gradients = torch.autograd.grad((wanted * probe).sum(), inputs, materialize_grads=True)
    assert module.together is (expert.shift == "none")
    for together in {module.together, False}:
        module.together = together
        found = module.mixed(h, routing, ctx)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        for one, other in zip(torch.autograd.grad((found * probe).sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_few_positions_wake_the_experts_in_use_alone():
    module, h = mixture(n_experts=8).eval(), positions()[:1, :1]
    woken = []
    for index, expert in enumerate(module.experts):
        expert.register_forward_hook(lambda *_, index=index: woken.append(index))
    with torch.no_grad():
        few = module(h, context(h))
        assert sorted(woken) == sorted(module.router(h[0], context(h)).experts[0].tolist())
        woken.clear()
        many = module(h.expand(20, 1, -1), context(h.expand(20, 1, -1)))
    assert woken == []  # grouped: no expert runs by itself
    torch.testing.assert_close(many, few.expand(20, 1, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate", ["none", "sigmoid"])
def test_the_shared_expert_is_added_for_every_position(gate):
    module, h = mixture(shared_hidden=7, shared_gate=gate), positions()
    assert module.shared.down_proj.weight.shape == (16, 7)
    without = module.mixed(h.flatten(0, 1), module.router(h.flatten(0, 1), context(h)), context(h)).view_as(h)
    share = torch.sigmoid(h @ module.shared_gate.weight.T) if gate == "sigmoid" else 1.0
    wanted = without + share * module.shared(h, context(h))
    torch.testing.assert_close(module(h, context(h)), wanted, rtol=1e-6, atol=1e-6)


def test_experts_have_weights_and_widths_of_their_own():
    module = mixture(expert_hidden=7, n_experts=3)
    assert [name for name, _ in module.named_parameters()] == [
        "router.proj.weight",
        *(f"experts.{i}.{name}.weight" for i in range(3) for name in ("gate_up_proj", "down_proj")),
    ]
    assert module.experts[0].down_proj.weight.shape == (16, 7)
    assert mixture().experts[0].down_proj.weight.shape == (16, DIMS.hidden)


def test_what_share_of_the_experts_is_active_can_be_asked():
    net = Backbone(layered(MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=2), n_experts=6)), DIMS, 31)
    found = [module for module in net.modules() if isinstance(module, Sparse)]
    assert [(module.share, sum(p.numel() for p in module.parameters())) for module in found] == [
        (pytest.approx(1 / 3), 6 * 3 * 16 * 24)
    ] * 2
    assert found[0].share * 3 == 1  # exactly


def layered(ffn, **settings):
    return BackboneSpec(layer=LayerSpec(ffn=ffn, **settings))


MIXTURE = MoE(expert=GatedMLP(), router=SoftmaxRouter(), n_experts=4, expert_hidden=8)
BALANCED = MoE(
    expert=GatedMLP(),
    router=SigmoidRouter(top_k=2),
    n_experts=4,
    expert_hidden=8,
    shared_hidden=8,
    shared_gate="sigmoid",
)
LOOPED = MoE(expert=MLP(shift="bias"), router=SoftmaxRouter(normalise="chosen"), n_experts=4, expert_hidden=8)


@pytest.mark.parametrize(
    ("ffn", "message"),
    [
        (MoE(expert=MIXTURE, router=SoftmaxRouter()), "ffn.expert: MoE in MoE"),
        (dataclasses.replace(MIXTURE, n_experts=1), "ffn.router.top_k: 2; allowed: at most n_experts 1"),
        (dataclasses.replace(MIXTURE, shared_gate="sigmoid"), "ffn.shared_gate: sigmoid without shared_hidden"),
    ],
)
def test_what_cannot_be_built_is_refused(ffn, message):
    with pytest.raises(RequestError, match=message):
        Backbone(layered(ffn), DIMS, 31)


@pytest.mark.parametrize("letters", ["D", "ABCD"])
def test_canon_d_has_no_place_among_experts(letters):
    with pytest.raises(RequestError, match="canon_at: D has no place in a layer of Attention with MoE"):
        Backbone(layered(MIXTURE, canon_at=letters), DIMS, 31)
    net = Backbone(layered(MIXTURE, canon_at="ABC"), DIMS, 31)
    assert sum("canon" in name for name, _ in net.named_parameters()) == 3 * 2


# ----------------------------------------------------------------------------------------------- inside a whole network
def network(ffn, dtype=torch.float64, n_layers=2):
    torch.manual_seed(0)
    net = Backbone(layered(ffn), dataclasses.replace(DIMS, n_layers=n_layers), 31).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def trained(net, docs=None):
    """Losses, gradients of everything, and the record of one training pass."""
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    ctx = Context(Visibility.rows(tokens, docs))
    net.zero_grad()
    nll = net(tokens, ctx, tokens.roll(-1, 1))
    (nll.mean() + sum(ctx.trace.losses.values())).backward()
    return nll.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}, ctx.trace


def same(one, other, tolerance=1e-9):
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one[1], other[1], rtol=tolerance, atol=tolerance)
    for record in ("losses", "metrics", "tallies"):
        torch.testing.assert_close(getattr(one[2], record), getattr(other[2], record), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("ffn", [MIXTURE, BALANCED, LOOPED], ids=["softmax", "sigmoid", "looped"])
def test_compiled_in_one_graph_equals_eager(ffn):
    """The loop too, though the sizes of its pieces are not known when it is compiled."""
    torch.compiler.reset()
    net, tokens = network(ffn, n_layers=1), torch.randint(31, (2, 6))
    wanted = trained(net)
    with torch.no_grad():
        answer = net(tokens, Context(Visibility.rows(tokens)))
    net.compile(fullgraph=True, backend="aot_eager")
    same(trained(net), wanted)
    with torch.no_grad():
        torch.testing.assert_close(net(tokens, Context(Visibility.rows(tokens))), answer, rtol=1e-9, atol=1e-9)


def test_further_batches_do_not_compile_again():
    torch.compiler.reset()
    net = network(MIXTURE, torch.float32, n_layers=1)
    wanted = trained(net)
    net.compile(fullgraph=True, backend="eager")
    same(trained(net), wanted, tolerance=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        trained(net)


@pytest.mark.parametrize("ffn", [MIXTURE, BALANCED, LOOPED], ids=["softmax", "sigmoid", "looped"])
def test_layers_run_again_for_their_gradients_count_nothing_twice(ffn):
    net = network(ffn)
    wanted = trained(net)
    for layer in net.layers:
        layer.activation_checkpointing = "layers"
    same(trained(net), wanted, tolerance=0)


def test_under_autocast_the_router_stays_exact_and_both_paths_agree():
    module, h = mixture(), positions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = module.router(h.flatten(0, 1), context(h))
        grouped = module(h, context(h))
        module.together = False
        looped = module(h, context(h))
    assert routing.weights.dtype == torch.float32
    exact = (h.flatten(0, 1) @ module.router.proj.weight.T).softmax(-1).topk(2)
    torch.testing.assert_close(routing.weights, exact.values, rtol=1e-6, atol=1e-6)
    assert grouped.dtype == looped.dtype == torch.bfloat16
    torch.testing.assert_close(grouped, looped, rtol=2e-2, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 4])
def test_decoding_and_packed_rows_go_the_way_of_whole_rows(size):
    net = network(BALANCED).eval()
    tokens = torch.randint(31, (2, 12))
    docs = (torch.arange(12) // 5).expand(2, 12)
    wanted, cache = net(tokens, Context(Visibility.rows(tokens))), Cache(12)
    pieces = [
        net(piece, Context(Visibility.rows(piece, start=cache.length), cache)) for piece in tokens.split(size, dim=1)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-9, atol=1e-9)
    packed = net(tokens, Context(Visibility.rows(tokens, docs)))
    alone = net(tokens[:, 5:10], Context(Visibility.rows(tokens[:, 5:10])))
    torch.testing.assert_close(packed[:, 5:10], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ffn", [MIXTURE, LOOPED], ids=["grouped", "looped"])
def test_work_is_that_of_the_chosen_experts_on_the_meta_device_too(ffn):
    """An operation counter there sees what it sees here."""
    counts = []
    for device in ("cpu", "meta"):
        module, h = ffn.build(SITE).to(device), positions().to(device).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            module(h, context(h)).square().sum().backward()
        counts.append(counter.get_total_flops())
    one_expert = sum(p.numel() for p in module.experts[0].parameters() if p.ndim == 2)
    assert counts == [3 * 2 * M * (2 * one_expert + module.router.proj.weight.numel())] * 2
