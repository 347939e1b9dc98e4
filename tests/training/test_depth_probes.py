"""One measuring pass against the same figures worked out layer by layer, for every norm scheme and kind of branch."""

import dataclasses
import math
import random
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_small_lm.plugins.layer_scale import LayerScale
from torch import nn

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.init import ZeroOutInit
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm
from lit_small_lm.nn.routers import SigmoidRouter, SoftmaxRouter
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import Dims, NormScheme, Query
from lit_small_lm.training.callbacks.depth_probes import QUERIES, measure

DIMS = Dims(dim=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=4, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
SCHEMES = runpy.run_path(str(Path(__file__).parents[1] / "norm_schemes.py"))["SCHEMES"]
OF_THE_STREAM = ("variance", "angular_distance", "block_influence", "mixer_update", "ffn_update", "mixer_input")


def network(spec=BackboneSpec(), dims=DIMS, scale=5.0):
    """A network whose branches all count."""
    torch.manual_seed(4)
    net = Backbone(spec, dims, 31)
    with torch.no_grad():
        for parameter in net.layers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return net


def question(tokens=TOKENS, docs=None, kind="causal"):
    return Query(tokens, Visibility.rows(tokens, docs, kind), tokens)


def figures(net, query=None, step=7, **groups):
    """name -> one number for each layer, None where there is none."""
    query = query or question()
    found = measure(net, query, Context(query.visibility, step=torch.tensor(step)), groups)
    table = {name: [None] * len(net.layers) for name, _ in found}
    for (name, layer), (total, count) in found.items():
        table[name][layer] = (total / count).item() if count else None
    return table


# -------------------------------------------------------------------------------------------------------- by hand
def test_pre_norm_layer_by_layer():
    """Streams, branch inputs and branch outputs written out; token means."""
    net = network()
    found = figures(net)
    ctx, x = Context(question().visibility), net.embed(TOKENS)
    for index, layer in enumerate(net.layers):
        h = layer.mixer_path.norm(x)
        one = layer.mixer(h, ctx)
        between = x + one
        g = layer.ffn_path.norm(between)
        two = layer.ffn(g, ctx)
        after = between + two
        cosine = torch.cosine_similarity(x, after, dim=-1)
        wanted = {
            "variance": after.var(-1, unbiased=False),
            "mixer_input": h.square().mean(-1).sqrt(),
            "ffn_input": g.square().mean(-1).sqrt(),
            "mixer_update": one.norm(dim=-1) / x.norm(dim=-1),
            "ffn_update": two.norm(dim=-1) / between.norm(dim=-1),
            "angular_distance": torch.arccos(cosine) / math.pi,
            "block_influence": 1 - cosine,
        }
        for name, values in wanted.items():
            assert found[name][index] == pytest.approx(values.mean().item(), rel=1e-4), name
        x = after


@pytest.mark.parametrize(
    ("scheme", "written"),
    [
        (PeriNorm(), lambda path, x, out: path.after(out)),
        (PostNorm(), lambda path, x, out: path.norm(x + out) - path.norm(x)),
        (LayerNormScaling(factor_on="branch"), lambda path, x, out: path.factor * out),
        (LayerScale(start=0.3), lambda path, x, out: 0.3 * out),
        (ProRes(scheme=PreNorm(), steps=10), lambda path, x, out: 0.7 * out),
        (ParallelNorm(), lambda path, x, out: out),
        (AttentionResiduals(), lambda path, x, out: out),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, NormScheme) else "",
)
def test_what_a_branch_writes_is_what_reaches_the_stream(scheme, written):
    """In the seventh step, in the first layer: there the stream is the embedding, whatever the scheme."""
    net, outs = network(BackboneSpec(norm=scheme)), []
    handle = net.layers[0].mixer.register_forward_hook(lambda module, args, out: outs.append(out))
    found = figures(net)
    handle.remove()
    x = net.embed(TOKENS)
    change = written(net.layers[0].mixer_path, x, outs[0])
    wanted = (change.norm(dim=-1) / x.norm(dim=-1)).mean().item()
    assert found["mixer_update"][0] == pytest.approx(wanted, rel=1e-4)


def test_parallel_branches_are_measured_against_one_stream():
    """Its carry holds the stream twice in between; that doubles nothing."""
    net, outs = network(BackboneSpec(norm=ParallelNorm())), []
    layer = net.layers[0]
    handles = [
        part.register_forward_hook(lambda module, args, out: outs.append(out)) for part in (layer.mixer, layer.ffn)
    ]
    found = figures(net)
    for handle in handles:
        handle.remove()
    x = net.embed(TOKENS)
    between = x + outs[0]
    assert found["ffn_update"][0] == pytest.approx(
        (outs[1].norm(dim=-1) / between.norm(dim=-1)).mean().item(), rel=1e-4
    )
    after = between + outs[1]
    assert found["variance"][0] == pytest.approx(after.var(-1, unbiased=False).mean().item(), rel=1e-4)


def test_attention_residuals_are_measured_by_the_sum_of_what_was_written():
    net, outs = network(BackboneSpec(norm=AttentionResiduals())), []
    parts = [part for layer in net.layers for part in (layer.mixer, layer.ffn)]
    handles = [part.register_forward_hook(lambda module, args, out: outs.append(out)) for part in parts]
    found = figures(net)
    for handle in handles:
        handle.remove()
    for index in range(3):
        x = net.embed(TOKENS) + sum(outs[: 2 * index + 2])
        assert found["variance"][index] == pytest.approx(x.var(-1, unbiased=False).mean().item(), rel=1e-4)


# -------------------------------------------------------------------------------------------------- golden relations
def test_layer_norm_scaling_shrinks_what_branches_read():
    """By the root of the layer's number, against Pre-LN; with a gain of one that is their size."""
    dims = dataclasses.replace(DIMS, n_layers=6)
    plain, scaled = (figures(network(BackboneSpec(norm=norm), dims)) for norm in (PreNorm(), LayerNormScaling()))
    for place in ("mixer_input", "ffn_input"):
        assert plain[place] == pytest.approx([1.0] * 6, rel=1e-2)
        assert scaled[place] == pytest.approx([1 / math.sqrt(layer + 1) for layer in range(6)], rel=1e-2)


def test_layers_whose_branches_are_silent_turn_nothing():
    found = figures(network(BackboneSpec(init=ZeroOutInit())))
    for name in ("angular_distance", "block_influence", "mixer_update", "ffn_update"):
        assert found[name] == [0.0] * 3, name
    assert found["variance"][0] == found["variance"][2] > 0


def test_post_norm_keeps_a_variance_of_one():
    found = figures(network(BackboneSpec(norm=PostNorm()), scale=20.0))
    assert found["variance"] == pytest.approx([1.0] * 3, rel=0.1)  # less the square of each token's mean


def test_attention_that_sees_all_alike():
    """Queries of zero: the entropy is the logarithm of how much is seen, in packed documents and windows too."""
    for window in (None, 3):
        net = network(BackboneSpec(layer=LayerSpec(mixer=Attention(window=window))))
        with torch.no_grad():
            for layer in net.layers:
                layer.mixer.qkv_proj.weight.unflatten(0, (2, 4, 4))[:, :2] = 0  # two queries, a key, a value
        docs = torch.tensor([[0] * 5 + [1] * 4, [2] * 7 + [-1] * 2])
        sizes = [*range(1, 6), *range(1, 5), *range(1, 8)]
        wanted = sum(math.log(min(size, window or size)) for size in sizes) / len(sizes)
        found = figures(net, question(docs=docs))["attention_entropy"]
        assert found == pytest.approx([wanted] * 3, rel=1e-5)
    both = figures(net, question(kind="bidirectional"))["attention_entropy"][0]  # a window of 3 is 2 to each side
    seen = [3, 4, 5, 5, 5, 5, 5, 4, 3]
    assert both == pytest.approx(sum(map(math.log, seen)) / 9, rel=1e-5)


def test_long_rows_are_sampled_evenly():
    tokens = torch.randint(31, (1, 4 * QUERIES), generator=torch.Generator().manual_seed(2))
    net = network()
    with torch.no_grad():
        net.layers[0].mixer.qkv_proj.weight.unflatten(0, (2, 4, 4))[:, :2] = 0
    wanted = sum(math.log(1 + at) for at in range(0, 4 * QUERIES, 4)) / QUERIES
    assert figures(net, question(tokens))["attention_entropy"][0] == pytest.approx(wanted, rel=1e-5)


# ------------------------------------------------------------------------------------------------ every kind of part
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_every_scheme_has_every_figure(scheme):
    net = network(BackboneSpec(norm=scheme))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = figures(net, last=torch.arange(9).expand(2, 9) == 8)
    for name in (*OF_THE_STREAM, "angular_distance_last", "ffn_input", "attention_entropy", "dead_units"):
        assert all(math.isfinite(value) for value in found[name]), name
    for name in ("variance", "angular_distance", "mixer_update", "ffn_update", "mixer_input"):
        assert min(found[name]) > 0, name
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class Folded(PreNorm):
    """A scheme whose carry nothing is found in: positions and channels are one dimension."""

    def open(self, dim):
        return nn.Flatten(1)

    def build(self, site):
        return FoldedPath(super().build(site))

    def close(self, dim):
        return nn.Sequential(nn.Unflatten(1, (-1, dim)), super().close(dim))


class FoldedPath(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, carry, branch):
        return self.path(carry.unflatten(1, (-1, 16)), branch).flatten(1)


def test_where_no_stream_is_found_the_rest_is_measured():
    found, wanted = figures(network(BackboneSpec(norm=Folded()))), figures(network())
    assert set(found) == {"mixer_input", "ffn_input", "attention_entropy", "dead_units"}
    assert all(found[name] == wanted[name] for name in found)


def test_dead_units_of_relu():
    net = network(BackboneSpec(layer=LayerSpec(ffn=MLP(activation="relu"))))
    with torch.no_grad():
        net.layers[0].ffn.up_proj.weight[:6] = 0
    tokens = torch.randint(31, (8, 64), generator=torch.Generator().manual_seed(2))
    assert figures(net, question(tokens))["dead_units"][0] == pytest.approx(6 / 24)


@pytest.mark.parametrize("router", [SoftmaxRouter(top_k=1), SigmoidRouter(top_k=1)], ids=["softmax", "sigmoid"])
def test_balance_of_experts(router):
    """Every position to the third of four experts; padding, whatever it does, is not counted."""
    moe = MoE(expert=GatedMLP(), router=router, n_experts=4, expert_hidden=8, shared_hidden=8)
    spec = BackboneSpec(layer=LayerSpec(), more_layers={"sparse": LayerSpec(ffn=moe)}, pattern=("layer", "sparse"))
    net = network(spec)
    third = torch.zeros(4, 16)
    docs = torch.tensor([[0] * 9, [1] * 4 + [-1] * 5])
    ffn = net.layers[1].ffn
    with torch.no_grad():
        ffn.router.proj.weight.copy_(third)
        ffn.router.proj.weight[2] = 1000.0
    signs = []
    handle = ffn.router.register_forward_hook(lambda module, args, out: signs.append(out.experts.flatten()))
    found = figures(net, question(docs=docs))
    handle.remove()
    load = torch.bincount(signs[0][(docs >= 0).flatten()], minlength=4).double()
    share = load / load.sum()
    assert found["load_imbalance"] == [None, pytest.approx((load.max() / load.mean()).item()), None]
    assert found["dead_experts"][1] == pytest.approx((load == 0).double().mean().item())
    entropy = torch.special.entr(share).sum().item() / math.log(4)
    assert found["load_entropy"][1] == pytest.approx(entropy, abs=1e-6)
    assert load.max() < load.sum()  # else nothing would be seen of the others
    assert all(value is not None for value in found["dead_units"])  # of the shared expert


def test_other_mixers():
    mla = MLA(kv_rank=8, nope_dim=4, rope_dim=4, value_dim=4)
    spec = BackboneSpec(
        layer=LayerSpec(mixer=mla), more_layers={"conv": LayerSpec(mixer=ShortConv())}, pattern=("layer", "conv")
    )
    found = figures(network(spec))["attention_entropy"]
    assert found[1] is None
    assert 0 < found[0] < math.log(9)
    assert 0 < found[2] < math.log(9)


def test_groups_and_padding():
    docs = torch.tensor([[0] * 9, [1] * 4 + [-1] * 5])
    chosen = torch.zeros(2, 9, dtype=torch.bool)
    chosen[0, 3] = chosen[1, 7] = True  # the second is padding
    net = network()
    found = measure(net, question(docs=docs), Context(question(docs=docs).visibility), {"masked": chosen})
    assert found["variance", 0][1] == 13
    assert found["angular_distance_masked", 0][1] == 1
    other = TOKENS.clone()
    other[1, 4:] = 5
    twin = measure(net, question(other, docs), Context(question(docs=docs).visibility), {"masked": chosen})
    assert all(torch.equal(found[key], twin[key]) for key in found)


# ----------------------------------------------------------------------------------------------- nothing is left behind
class Drawing(nn.Module):
    """A branch that draws from every global generator, also while it is evaluated."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, h, ctx):
        return self.inner(h, ctx) * (1 + 0.1 * (torch.rand(1) + random.random() + np.random.rand()).float())


def test_a_pass_leaves_no_trace():
    """Modes, hooks, gradients and random states are what they were."""
    net = network(BackboneSpec(layer=LayerSpec(mixer=Attention(dropout=0.5))))
    net.layers[0].ffn = Drawing(net.layers[0].ffn)
    net.train()
    net.layers[1].eval()
    modes = [module.training for module in net.modules()]
    net(TOKENS, Context(question().visibility), TOKENS).mean().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    first = figures(net)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, net.parameters(), strict=True))
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert figures(net) == first


def test_nothing_is_dropped_while_measuring():
    net = network(BackboneSpec(layer=LayerSpec(mixer=Attention(dropout=0.5), ffn=GatedMLP(dropout=0.5)))).train()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(figures(net))
    assert found[0] == found[1]


def test_hooks_go_when_the_pass_fails():
    net = network()
    net.layers[1].ffn.forward = None
    with pytest.raises(TypeError):
        figures(net)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert net.training


@pytest.mark.slow  # compiles
@pytest.mark.parametrize(
    "scheme", [PreNorm(norm=RMSNorm()), AttentionResiduals()], ids=["PreNorm", "AttentionResiduals"]
)
def test_a_compiled_network_is_measured_without_a_new_graph(scheme):
    net, plain = network(BackboneSpec(norm=scheme)), network(BackboneSpec(norm=scheme))
    net.compile(backend="aot_eager")  # a graph and its guards, without code for a processor

    def loss():
        net.zero_grad()
        value = net(TOKENS, Context(question().visibility), TOKENS).mean()
        value.backward()
        return value.item(), [p.grad.clone() for p in net.parameters()]

    before = loss()
    assert figures(net) == figures(plain)
    with torch.compiler.set_stance("fail_on_recompile"):
        after = loss()
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
