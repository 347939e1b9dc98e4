"""Multi-head latent attention against its formula, and its two ways of decoding against each other."""

import math

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.nn.mla import MLA
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import NoPositions, Rotary
from lit_small_lm.plugin import Dims, Site

HEADS, DIM, TIME = 3, 12, 11
SIZES = {"kv_rank": 5, "nope_dim": 3, "rope_dim": 4, "value_dim": 6}
DIMS = Dims(dim=DIM, n_layers=2, n_heads=HEADS, n_kv_heads=1, head_dim=99, hidden=16)
DOCS = torch.tensor([[0] * 3 + [1] * 7 + [2], [5] * 6 + [6] * 5])


def built(positions=None, **settings):
    torch.manual_seed(0)
    mixer = MLA(**{**SIZES, **settings}).build(Site(DIMS, 0, "mixer", positions=positions or Rotary())).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def inputs():
    return torch.randn(2, TIME, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(mixer, h, ctx, scale):
    """Head by head: its keys and values from the latent, the turned key from the input, one softmax a query."""
    q = mixer.q_proj(h) if mixer.q_down is None else mixer.q_up(mixer.q_norm(mixer.q_down(h)))
    latent, turned = mixer.kv_down(h)[..., :5], mixer.kv_down(h)[..., 5:]
    latent, mask = mixer.kv_norm(latent), ctx.visibility.dense().squeeze(1)
    outs = []
    for head in range(HEADS):
        mine = q[..., head * 7 : (head + 1) * 7]
        weight = mixer.kv_up.weight[head * 9 : (head + 1) * 9]
        k, v = latent @ weight[:3].T, latent @ weight[3:].T
        q_turned, k_turned = mixer.rotate(mine[..., 3:].unsqueeze(1), turned.unsqueeze(1), ctx)
        scores = mine[..., :3] @ k.mT + q_turned.squeeze(1) @ k_turned.squeeze(1).mT
        outs.append((scores * scale).masked_fill(~mask, -math.inf).softmax(-1) @ v)
    return mixer.o_proj(torch.cat(outs, -1))


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
@pytest.mark.parametrize("docs", [None, DOCS], ids=["whole", "packed"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"q_rank": 4}, {"q_rank": 4, "scale": 0.3, "norm": LayerNorm()}],
    ids=["direct queries", "latent queries", "scale"],
)
def test_equals_the_formula(kind, docs, settings):
    mixer, h = built(**settings), inputs().requires_grad_()
    view = Visibility.rows(h[..., 0], docs, kind)
    found = mixer(h, Context(view))
    wanted = by_hand(mixer, h, Context(view), settings.get("scale", 1 / math.sqrt(7)))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    probe, leaves = torch.randn_like(wanted), [h, *mixer.parameters()]
    gradients = zip(*(torch.autograd.grad((out * probe).sum(), leaves) for out in (found, wanted)), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("settings", [{}, {"q_rank": 4, "scale": 0.3}], ids=["direct queries", "latent queries"])
def test_absorbed_equals_expanded(settings):
    """Gradients included."""
    mixer, h = built(**settings), inputs().requires_grad_()
    ctx = Context(Visibility.rows(h[..., 0], DOCS))
    probe = torch.randn(2, HEADS, TIME, 6, dtype=torch.float64)
    leaves, found = [h, mixer.kv_up.weight, mixer.kv_down.weight], []
    for way in (mixer.absorbed, mixer.expanded):
        out = way(*mixer.projected(h, ctx), ctx)
        found.append([out, *torch.autograd.grad((out * probe).sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * TIME, [TIME], [6, 1, 4], [3, 8]], ids=str)
@pytest.mark.parametrize("canon_at", ["", "B"])
def test_the_cache_holds_latent_and_turned_key_alone(sizes, canon_at, monkeypatch):
    """Both ways of decoding give the whole pass."""
    spec = BackboneSpec(layer=LayerSpec(mixer=MLA(**SIZES, q_rank=4), canon_at=canon_at))
    torch.manual_seed(0)
    net, ways = Backbone(spec, DIMS, 31).double().eval(), []
    for parameter in net.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    for layer in net.layers:
        for name in ("absorbed", "expanded"):
            way = getattr(layer.mixer, name)
            monkeypatch.setattr(layer.mixer, name, lambda *a, way=way, name=name: ways.append(name) or way(*a))
    tokens, cache = torch.randint(31, (2, TIME)), Cache(TIME)
    wanted = net(tokens, Context(Visibility.rows(tokens)))
    ways.clear()
    pieces = [
        net(piece, Context(Visibility.rows(piece, start=cache.length), cache)) for piece in tokens.split(sizes, 1)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-9, atol=1e-9)
    assert ("absorbed" in ways) is (len(sizes) > 2)
    widths = [
        buffer.shape for key, buffer in cache._buffers.items() if key in (("k", (0, "mixer")), ("v", (0, "mixer")))
    ]
    assert widths == [(2, 1, TIME, 4), (2, 1, TIME, 5)]


def test_modules_have_the_ranks_asked_for():
    shapes = {name: tuple(p.shape) for name, p in built(q_rank=4).named_parameters()}
    assert shapes == {
        "q_down.weight": (4, 12),
        "q_norm.weight": (4,),
        "q_up.weight": (21, 4),
        "kv_down.weight": (9, 12),
        "kv_norm.weight": (5,),
        "kv_up.weight": (27, 5),
        "o_proj.weight": (12, 18),
    }
    assert built().q_proj.weight.shape == (21, 12)


def test_without_positions_nothing_is_turned():
    mixer, h = built(positions=NoPositions()), inputs()
    assert mixer.rotate is None
    early, late = (Context(Visibility.rows(h[..., 0], kind="bidirectional", start=start)) for start in (0, 5))
    torch.testing.assert_close(mixer(h, early), mixer(h, late), rtol=0, atol=0)


def test_canon_b_spans_what_is_projected_first():
    for rank, width in ((4, 4 + 9), (None, 21 + 9)):
        net = Backbone(BackboneSpec(layer=LayerSpec(mixer=MLA(**SIZES, q_rank=rank), canon_at="B")), DIMS, 31)
        assert net.layers[0].mixer.canon.sum.weight.shape == (width, 4)
