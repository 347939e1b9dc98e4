"""Attention through the fused kernel against the plain twin, gradients included."""

import math

import pytest
import torch

from lit_small_lm import attending
from lit_small_lm.attending import attend, swept_attention
from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.nn.attention import Attention, plain_attention
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.positions import NoPositions, Rotary
from lit_small_lm.plugin import Dims, Site

TIME, BATCH = 11, 2


def site(n_kv_heads=2, head_dim=6, positions=None):
    dims = Dims(dim=16, n_layers=1, n_heads=4, n_kv_heads=n_kv_heads, head_dim=head_dim, hidden=8)
    return Site(dims, 0, "mixer", positions=positions or Rotary())


def documents():
    return torch.tensor([[0] * 3 + [1] * 7 + [2], [5] * 6 + [6] * 5])


def by_hand(joined, head_dim, n_heads):
    """Queries, keys and values, looked up head by head: in each group its queries, then its key and its value."""
    heads = joined.unflatten(-1, (-1, head_dim)).transpose(1, 2)  # (B, H+2G, T, K)
    of_query, kinds = n_heads // ((heads.shape[1] - n_heads) // 2), ([], [], [])
    for index in range(heads.shape[1]):
        place = index % (of_query + 2)
        kinds[max(0, place - of_query + 1)].append(index)
    return (heads[:, kind] for kind in kinds)


def plain_mixer(mixer, h, ctx, window):
    """What the mixer computes, by the plain twin."""
    q, k, v = by_hand(mixer.qkv_proj(h), mixer.head_dim, n_heads=4)
    if mixer.q_norm is not None:
        q, k = mixer.q_norm(q), mixer.k_norm(k)
    if mixer.v_norm is not None:
        v = mixer.v_norm(v)
    if mixer.rotate is not None:
        q, k = mixer.rotate(q, k, ctx)
    out = plain_attention(q, k, v, ctx.visibility.dense(window=window), scale=mixer.scale)
    return mixer.o_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(
    "spec",
    [
        Attention(shift="bias"),
        Attention(shift="qkv", window=1),
        Attention(shift="bias", window=4, scale=0.3),
        Attention(qk_norm=RMSNorm()),
        Attention(qk_norm=LayerNorm(), qk_norm_over="width"),
        Attention(qk_norm=RMSNorm(), v_norm=LayerNorm()),
    ],
    ids=["full", "window 1", "window 4", "head norm", "width norm", "QKV norm"],
)
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_equals_the_plain_twin(kind, packed, spec, n_kv_heads):
    torch.manual_seed(0)
    mixer, window = spec.build(site(n_kv_heads)).double(), spec.window
    h = torch.randn(BATCH, TIME, 16, dtype=torch.float64, requires_grad=True)
    view = Visibility.rows(h[..., 0], documents() if packed else None, kind)
    inputs = [h, *mixer.parameters()]
    probe = torch.randn(BATCH, TIME, 16, dtype=torch.float64)
    fast, plain = mixer(h, Context(view)), plain_mixer(mixer, h, Context(view), window)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad((plain * probe).sum(), inputs)
    found = torch.autograd.grad((fast * probe).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_plain_twin_by_hand():
    """Two positions, one head of one channel: the softmax of two scores, written out."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).view(1, 1, 2, 1) for x in ([1.0, 2.0], [3.0, -1.0], [5.0, 7.0]))
    causal = torch.tensor([[True, False], [True, True]]).view(1, 1, 2, 2)
    share = 1 / (1 + math.exp(-2 - 6))
    wanted = [5.0, share * 5 + (1 - share) * 7]
    torch.testing.assert_close(plain_attention(q, k, v, causal).flatten().tolist(), wanted, rtol=1e-14, atol=0)


def test_a_scale_takes_the_place_of_the_root_of_the_head_dim():
    q, k, v = torch.randn(3, 1, 2, 5, 8, dtype=torch.float64).unbind(0)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    wanted = plain_attention(q * 0.3 * math.sqrt(8), k, v, mask)
    torch.testing.assert_close(plain_attention(q, k, v, mask, scale=0.3), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("over", "gains"), [("head", 6), ("width", 24)])
def test_queries_are_normed_by_head_or_all_at_once(over, gains):
    torch.manual_seed(0)
    mixer = Attention(qk_norm=RMSNorm(eps=1e-30), qk_norm_over=over).build(site(n_kv_heads=2)).double()
    assert sum(p.numel() for p in mixer.q_norm.parameters()) == gains
    q = torch.randn(2, 4, 5, 6, dtype=torch.float64)  # (B, H, T, K)
    dims = (-1,) if over == "head" else (1, -1)
    wanted = q / q.square().mean(dims, keepdim=True).sqrt()
    torch.testing.assert_close(mixer.q_norm(q), wanted, rtol=1e-12, atol=1e-12)


def test_query_heads_share_their_group_of_keys():
    """With grouped keys, heads 0 and 1 read key head 0, heads 2 and 3 key head 1."""
    torch.manual_seed(0)
    mixer = Attention().build(site(n_kv_heads=2, head_dim=4, positions=NoPositions())).double()
    h = torch.randn(1, 5, 16, dtype=torch.float64)
    heads = {}
    mixer.o_proj.register_forward_pre_hook(lambda module, args: heads.update(out=args[0].unflatten(-1, (4, 4))))
    mixer(h, Context(Visibility.rows(h[..., 0])))
    before = heads["out"]
    with torch.no_grad():
        mixer.qkv_proj.weight[8:12] += 1  # the first key head, behind its two queries
    mixer(h, Context(Visibility.rows(h[..., 0])))
    changed = (heads["out"] != before).any(-1).any(1)[0]
    assert changed.tolist() == [True, True, False, False]


def test_window_counts_the_query_itself():
    torch.manual_seed(0)
    mixer = Attention(window=3).build(site()).double()
    h = torch.randn(1, TIME, 16, dtype=torch.float64, requires_grad=True)
    out = mixer(h, Context(Visibility.rows(h[..., 0])))
    reach = torch.autograd.grad(out[0, 7].sum(), h)[0][0].abs().sum(-1) > 0
    assert reach.nonzero().flatten().tolist() == [5, 6, 7]


@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_sweep_equals_the_plain_twin(monkeypatch, scale):
    """One query for each head, behind keys that lie by position; gradients, too."""
    torch.manual_seed(0)
    sizes = [(16, 4, 1, 6), (16, 4, 5, 6), (16, 4, 5, 3)]
    q, k, v = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    cache, swept = Cache(9), []
    monkeypatch.setattr(attending, "swept_attention", lambda *args: swept.append(1) or swept_attention(*args))
    with torch.no_grad():
        keys, values = cache.keys_values("here", k, v)
    newest = torch.full((16, 1), 4)
    found = attend(q, keys, values, Context(Visibility(newest), cache), scale=scale)
    assert swept == [1]
    wanted = plain_attention(q, k, v, torch.ones(16, 1, 1, 5, dtype=torch.bool), scale=scale)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad(swept_attention(q, k, v, scale), (q, k, v), probe),
        torch.autograd.grad(wanted, (q, k, v), probe),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_padded_rows_are_not_swept():
    """Rows of several documents need a mask."""
    k, cache = torch.randn(16, 4, 2, 6), Cache(9)
    padding = torch.zeros(16, 2, dtype=torch.long)
    padding[0, 0] = -1
    places = Visibility(torch.arange(2).expand(16, 2), padding)
    whole = Visibility(places.positions[:, 1:], padding[:, 1:])
    Context(Visibility(places.positions[:, :1], padding[:, :1]), cache).keys()
    cache.keys_values("here", k[:, :, :1], k[:, :, :1])
    cache.advance(1)
    keys, values = cache.keys_values("here", k[:, :, 1:], k[:, :, 1:])
    found = attend(k[:, :, 1:], keys, values, Context(whole, cache))
    wanted = plain_attention(k[:, :, 1:], k, k, places.dense()[:, :, 1:])
    torch.testing.assert_close(found, wanted)


def test_packed_rows_and_cache_together():
    """A packed row decoded in two calls, documents crossing the cut."""
    torch.manual_seed(0)
    mixer = Attention().build(site()).double()
    h = torch.randn(BATCH, TIME, 16, dtype=torch.float64)
    whole = Visibility.rows(h[..., 0], documents())
    cache, pieces = Cache(TIME), []
    for start, end in ((0, 5), (5, TIME)):
        view = Visibility(whole.positions[:, start:end], whole.doc_ids[:, start:end])
        pieces.append(mixer(h[:, start:end], Context(view, cache)))
        cache.advance(end - start)
    wanted = mixer(h, Context(whole))
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-10, atol=1e-12)


def test_dropout_acts_while_training_only():
    torch.manual_seed(0)
    mixer, h = Attention(dropout=0.5).build(site()), torch.randn(1, TIME, 16)
    view = Context(Visibility.rows(h[..., 0]))
    dropped = (mixer(h, view) == 0).float().mean().item()
    assert 0.3 < dropped < 0.7
    assert not (mixer.eval()(h, view) == 0).any()


def values_read(spec, n_layers=3):
    """Values before and after they are mixed, layer by layer, and the network, in float64."""
    torch.manual_seed(0)
    dims = Dims(dim=16, n_layers=n_layers, n_heads=4, n_kv_heads=2, head_dim=6, hidden=24)
    net = Backbone(BackboneSpec(layer=LayerSpec(mixer=spec)), dims, 31).double()
    own, mixed = [], []
    for layer in net.layers:
        layer.mixer.mix_values.register_forward_hook(lambda _, args, out: own.append(args[0]) or mixed.append(out))
    return net, own, mixed


def test_values_are_mixed_with_those_of_the_first_attention():
    net, own, mixed = values_read(Attention(value_residual="learned", v_norm=RMSNorm()))
    tokens = torch.randint(31, (2, 9))
    with torch.no_grad():
        net.layers[2].mixer.mix_values.weights.copy_(torch.tensor([0.25, 3.0]))
    net(tokens, Context(Visibility.rows(tokens)))
    assert torch.equal(mixed[0], own[0])
    torch.testing.assert_close(mixed[1], 0.5 * own[1] + 0.5 * own[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed[2], 0.25 * own[2] + 3.0 * own[0], rtol=1e-12, atol=1e-12)
    assert [p.shape for name, p in net.named_parameters() if "mix_values" in name] == [(2,), (2,)]


def test_layers_run_again_mix_the_same_values():
    net, _, _ = values_read(Attention(value_residual="learned"))
    tokens, found = torch.randint(31, (2, 9)), []
    for mode in ("off", "layers"):
        for layer in net.layers:
            layer.activation_checkpointing = mode
        net.zero_grad()
        net(tokens, Context(Visibility.rows(tokens)), tokens).mean().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
    assert found[0]["layers.2.mixer.mix_values.weights"].abs().min() > 0
