"""Memory of unchanging shape, and steps run as one: the same text as operation by operation."""

import itertools

import pytest
import torch

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.positions import Learned, NoPositions
from lit_small_lm.plugin import Specials
from lit_small_lm.samplers import stepping
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.layout import lay_by_outputs
from tests.numerics.test_decoding import CONV, network

SPECIALS = Specials(vocab_size=31, end=0, pad=1, mask=2)
LATENT = MLA(q_rank=12, kv_rank=6, nope_dim=4, rope_dim=2, value_dim=4)
FAMILIES = {
    "Llama": BackboneSpec(head="untied"),
    "wide Canon": BackboneSpec(layer=LayerSpec(canon_at="ABCD", canon=CausalCanon(kernel=6))),
    "only convolutions": BackboneSpec(layer=CONV, positions=NoPositions()),
    "hybrid": BackboneSpec(more_layers={"conv": CONV}, pattern=("conv", "conv", "layer")),
    "window": BackboneSpec(layer=LayerSpec(mixer=Attention(window=3), canon_at="AC")),
    "learned": BackboneSpec(positions=Learned(length=20)),
    "latent": BackboneSpec(layer=LayerSpec(mixer=LATENT, canon_at="B")),
}
GREEDY, CUT = {"temperature": 0.0}, {"top_k": 9, "top_p": 0.9}
COMPILED = [("hybrid", GREEDY), ("latent", CUT)]
"""Compiling takes a while."""
PADDED = torch.tensor([[1, 1, 1, 5, 6], [7, 8, 9, 10, 11]])


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were traced, to run as they are in the place of compiled ones."""
    found, compile = [], torch.compile

    def kept(graph, inputs, options=None):
        found.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", kept)
    monkeypatch.setattr(
        torch,
        "compile",
        lambda step, dynamic, backend=kept: compile(step, fullgraph=True, dynamic=dynamic, backend=backend),
    )
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


@torch.no_grad()
def decode(net, tokens, docs, fixed):
    """Logits of tokens (B, 14) read in pieces, the first of seven."""
    cache, found = Cache(20), []
    for start, end in [(0, 7), (7, 8), (8, 9), (9, 12), (12, 13), (13, 14)]:
        column = torch.arange(start, end).expand(len(tokens), -1)
        seen = Visibility(column, None if docs is None else docs[:, start:end])
        found.append(net(tokens[:, start:end], Context(seen, cache)))
        if fixed and start == 0:
            cache = cache.fixed(tokens.device)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("docs", [None, torch.tensor([[0] * 14, [-1] * 4 + [0] * 10])], ids=["whole", "padded"])
@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_memory_of_unchanging_shape_gives_the_same_logits(spec, docs):
    tokens = torch.randint(31, (2, 14), generator=torch.Generator().manual_seed(1))
    net = network(spec)
    wanted = decode(net, tokens, docs, fixed=False)
    torch.testing.assert_close(decode(net, tokens, docs, fixed=True), wanted, rtol=1e-9, atol=1e-9)


def test_memory_of_unchanging_shape_keeps_the_rows_that_are_selected():
    tokens, net = torch.tensor([[3, 4, 5], [6, 7, 8]]), network(FAMILIES["hybrid"])
    rows, found = torch.tensor([1, 1]), []
    for fixed in (False, True):
        cache = Cache(4)
        with torch.no_grad():
            net(tokens, Context(Visibility.rows(tokens), cache))
            cache = cache.fixed(tokens.device) if fixed else cache
            cache.select(rows)
            found.append(net(tokens[rows, :1], Context(Visibility(torch.full((2, 1), 3)), cache)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_its_shapes_and_places_in_memory_do_not_change():
    net, cache, piece = network(FAMILIES["hybrid"]), Cache(8), torch.tensor([[3], [4]])
    kept = []
    with torch.no_grad():
        for index in range(4):
            net(piece, Context(Visibility(torch.full((2, 1), index)), cache))
            cache = cache if index else cache.fixed(piece.device)
            kept.append({address: (t.shape, t.data_ptr()) for address, t in cache._buffers.items()})
    assert kept[0] == kept[1] == kept[2] == kept[3]


@pytest.mark.parametrize(("family", "settings"), COMPILED)
def test_a_compiled_step_draws_the_same_text(family, settings, graphs):
    net = network(FAMILIES[family])
    wanted, found = (
        [frame.tokens for frame in Autoregressive(step=how, **settings).frames(net, PADDED, 12, 3, SPECIALS)]
        for how in ("eager", "compiled")
    )
    assert len(graphs) == 1
    assert torch.equal(found[-1], wanted[-1])


def test_what_is_compiled_for_cuda_draws_the_same_text(monkeypatch, graphs):
    """All but the kernels, on the CPU."""
    fused = stepping._fused
    monkeypatch.setattr(stepping, "_fused", lambda step, device: fused(step, torch.device("cuda")))
    net = network(BackboneSpec(layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"))))
    wanted, found = (
        [frame.tokens for frame in Autoregressive(step=how).frames(net, PADDED, 12, 3, SPECIALS)]
        for how in ("eager", "compiled")
    )
    assert torch.equal(found[-1], wanted[-1])
    maps = graphs[0].graph.find_nodes(op="call_function", target=torch.nn.functional.linear)
    assert {len(node.args) for node in maps} == {2}, "a bias was left to the product"


def test_a_graph_needs_cuda():
    frames = Autoregressive(step="graph").frames(network(FAMILIES["Llama"]), PADDED, 3, 0, SPECIALS)
    with pytest.raises(RequestError, match="step: graph; the network is on cpu; allowed there: eager, compiled"):
        list(frames)


def test_logits_that_are_not_finite_are_seen_at_once_on_a_cpu():
    net = network(FAMILIES["Llama"])
    frames = Autoregressive().frames(net, PADDED, 9, 0, SPECIALS)
    next(frames)
    with torch.no_grad():
        net.head.weight[3] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        next(frames)


def test_frames_stay_as_they_were():
    """They share memory with later ones."""
    net = network(FAMILIES["Llama"])
    kept = [(frame.tokens, frame.tokens.clone()) for frame in Autoregressive().frames(net, PADDED, 5, 0, SPECIALS)]
    assert all(torch.equal(now, then) for now, then in kept)


def test_parts_are_at_hand_for_a_while():
    net = network(FAMILIES["Llama"])
    before = [dict(vars(module)) for module in net.modules()]
    with pytest.raises(ZeroDivisionError), stepping.at_hand(net):
        assert vars(net)["layers"] is net.layers
        assert vars(net.embed)["weight"] is net.embed.weight
        with stepping.at_hand(net):
            pass
        assert vars(net)["layers"] is net.layers
        raise ZeroDivisionError
    assert [dict(vars(module)) for module in net.modules()] == before
    with stepping.at_hand(lambda tokens, ctx: tokens):  # a network that is no module
        pass


def test_parts_at_hand_are_those_that_are_called():
    net, called, tokens = network(FAMILIES["Llama"]), [], torch.randint(31, (2, 5))
    ctx = Context(Visibility.rows(tokens))
    wanted = net(tokens, ctx)
    net.layers[0].register_forward_hook(lambda *_: called.append("layer"))
    with stepping.at_hand(net):
        assert torch.equal(net(tokens, ctx), wanted)
        with torch.no_grad():
            net.embed.weight.add_(1)
            net.close.weight = torch.nn.Parameter(2 * net.close.weight)
        found = net(tokens, ctx)
    assert called == ["layer"] * 2
    assert torch.equal(net(tokens, ctx), found)
    assert not torch.equal(found, wanted)


def test_parts_of_a_compiled_network_stay_where_they_are():
    net = network(FAMILIES["Llama"])
    net.layers[0].compile(backend="eager")
    before = dict(vars(net))
    with stepping.at_hand(net):
        assert dict(vars(net)) == before


def test_what_was_set_in_the_meantime_stays():
    net = network(FAMILIES["Llama"])
    with stepping.at_hand(net):
        net.layers[0].compile(backend="eager")
    assert net.layers[0]._compiled_call_impl is not None


def test_hooks_of_all_modules_are_called():
    net, called, tokens = network(FAMILIES["Llama"]), [], torch.randint(31, (2, 5))
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        with stepping.at_hand(net):
            net(tokens, Context(Visibility.rows(tokens)))
    finally:
        handle.remove()
    assert {net, net.embed, net.close} <= set(called)


def test_weights_lie_one_behind_the_other():
    net = network(FAMILIES["Llama"])
    lay_by_outputs(net)
    weights = [module.weight for module in net.modules() if isinstance(module, torch.nn.Linear)]
    for one, behind in itertools.pairwise(weights):
        assert 0 <= behind.data_ptr() - one.data_ptr() - one.nbytes < 64


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_how_weights_lie_changes_nothing_but_rounding(spec):
    net, twin = network(spec), network(spec)
    lay_by_outputs(twin)
    maps = [module.weight for module in twin.modules() if isinstance(module, torch.nn.Linear)]
    assert all(weight.t().is_contiguous() == (weight.shape[0] > weight.shape[1]) for weight in maps)
    assert {weight.is_contiguous() for weight in maps} == {True, False}
    assert twin.embed.weight.t().is_contiguous() == (spec.head == "tied")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    tokens = torch.randint(31, (2, 14))
    wanted, found = (decode(one, tokens, None, fixed=False) for one in (net, twin))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------ on CUDA
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("step", "family", "settings"),
    [*(("graph", family, how) for family in FAMILIES for how in (GREEDY, CUT)), *(("compiled", *c) for c in COMPILED)],
)
def test_graphs_draw_what_is_drawn_operation_by_operation(step, family, settings):
    net, prompt = network(FAMILIES[family]).cuda(), PADDED.cuda()
    wanted, found = (
        list(Autoregressive(step=how, **settings).frames(net, prompt, 14, 3, SPECIALS))[-1].tokens
        for how in ("eager", step)
    )
    assert torch.equal(found, wanted)


@pytest.mark.gpu
def test_a_graph_is_captured_and_replayed(monkeypatch):
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph)))
    net = network(FAMILIES["hybrid"]).cuda()
    frames = list(Autoregressive(step="graph").frames(net, PADDED.cuda(), 12, 0, SPECIALS))
    assert len(replays) == 12 - 1 - stepping.WARM
    assert len(set(map(id, replays))) == 1
    assert [frame.tokens.shape[1] for frame in frames] == list(range(6, 18))


@pytest.mark.gpu
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_no_frame_waits_for_the_device(step):
    net = network(FAMILIES["Llama"]).cuda()
    frames = Autoregressive(step=step, top_p=0.9).frames(net, PADDED.cuda(), 20, 0, SPECIALS)
    for _ in range(8):
        next(frames)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            next(frames)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_damage_is_seen_on_a_device_too(step):
    net = network(FAMILIES["Llama"]).cuda()
    with torch.no_grad():
        net.head.weight[3] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        list(Autoregressive(step=step).frames(net, PADDED.cuda(), 9, 0, SPECIALS))
