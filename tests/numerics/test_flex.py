"""FlexAttention against the plain twin: its masks and the choice of a way on every machine, its kernels on a GPU."""

import functools
import itertools

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from lit_small_lm import attending, flex
from lit_small_lm.attending import attend
from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.flex import block_mask, has_kernel, rule, tiled_attention
from lit_small_lm.nn.attention import Attention, plain_attention
from lit_small_lm.shapes import FixedShape

KINDS = ("causal", "bidirectional", "annealed", "block", "doubled")
ROWS, TIME, SIZE, WINDOW = 2, 300, 24, 40
DIMS = FixedShape(dim=64, n_layers=1, n_heads=4, n_kv_heads=2, hidden=64).resolve()


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """On a CPU there is nothing to compile: every pair is computed, and gradients are let through."""
    torch.compiler.reset()
    if not torch.cuda.is_available():
        monkeypatch.setattr(flex, "_fused", lambda function: function)
        monkeypatch.setattr(torch_flex, "_validate_device", lambda *parts: None)
    yield
    torch.compiler.reset()


def documents(seed=0, time=TIME):
    """Three documents a row, at places of their own in each."""
    cuts = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values * time
    column = torch.arange(time).expand(ROWS, time).contiguous()
    return torch.searchsorted(cuts, column.float(), right=True) + 3 * torch.arange(ROWS).unsqueeze(1)


def view_of(kind, packed=True, seed=0, device="cpu"):
    """Rows of `TIME` positions, half of them noisy and half clean where they are doubled."""
    time = TIME // 2 if kind == "doubled" else TIME
    tokens = torch.zeros(ROWS, time, device=device)
    rows = Visibility.rows(tokens, documents(seed, time).to(device) if packed else None)
    if kind == "doubled":
        return rows.doubled(SIZE)
    if kind == "annealed":
        return rows.annealed(0.3, 7)
    return Visibility.rows(tokens, rows.doc_ids, kind, block_size=SIZE)


def heads(groups=2, dtype=torch.float32, device="cpu", width=16, values=None):
    torch.manual_seed(0)
    sizes = (4, width), (groups, width), (groups, values or width)
    return [
        torch.randn(ROWS, count, TIME, size).to(device, dtype).requires_grad_(device != "cpu") for count, size in sizes
    ]


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_pair_by_pair_the_rule_is_the_dense_mask(kind, packed, window):
    view, column = view_of(kind, packed), torch.arange(TIME)
    row = torch.arange(ROWS).view(-1, 1, 1)
    asked = rule(view, window)(row, None, column.view(-1, 1), column)
    assert torch.equal(asked.expand(ROWS, TIME, TIME), view.dense(window=window)[:, 0])
    if view.layout is not None:
        assert torch.equal(Visibility.laid_out(view.layout).dense(window=window), view.dense(window=window)[:1])


def test_a_mask_is_kept_where_rows_lie_alike():
    views = [view_of("doubled", False), view_of("block", False)]
    views += [Visibility.rows(torch.zeros(1, TIME), None, "block", 3, SIZE), views[0].doubled(SIZE)]
    kept = [block_mask(view, window) for view, window in itertools.product(views, (None, WINDOW))]
    again = [block_mask(view, window) for view, window in itertools.product(views, (None, WINDOW))]
    assert all(one is other for one, other in zip(kept, again, strict=True))
    assert len(set(map(id, kept))) == 8
    assert block_mask(view_of("doubled")) is not block_mask(view_of("doubled"))


def test_rows_that_may_differ_have_no_layout():
    by_hand = Visibility(torch.tensor([[0, 1, 2], [1, 2, 3]]), kind="block", block_size=2)
    for view in (by_hand, by_hand.doubled(2), view_of("causal"), view_of("annealed", False)):
        assert view.layout is None


def test_a_kept_mask_may_be_trained_with():
    """Although it was first asked for while nothing could be."""
    flex._kept.cache_clear()
    with torch.inference_mode():
        mask = block_mask(view_of("block", False))
    assert not mask.kv_indices.is_inference()


class Ways:
    """Which ways were taken, on a machine that has kernels for all of them."""

    def __init__(self, monkeypatch):
        self.tiled = 0
        monkeypatch.setattr(attending, "has_kernel", lambda q, v: True)
        monkeypatch.setattr(attending, "tiled_attention", self.note)

    def note(self, q, k, v, mask, scale=None):
        self.tiled += 1
        return q


def test_which_way_is_taken(monkeypatch):
    ways, (q, k, v) = Ways(monkeypatch), heads()
    packed, whole = Context(view_of("causal")), Context(view_of("causal", False))
    attend(q, k, v, packed)
    attend(q, k, v, whole, window=3)
    assert ways.tiled == 2
    attend(q, k, v, whole)
    attend(q, k, v, packed, dropout=0.1)
    attend(q, k, v, Context(view_of("causal"), attention="dense"))
    attend(q, k, v, Context(view_of("causal"), Cache()))
    assert ways.tiled == 2


def test_there_are_no_kernels_for_a_cpu():
    q, _, v = heads()
    assert not has_kernel(q, v)


def losses(net, view, seed=0, attention="fastest"):
    tokens = torch.randint(50, view.positions.shape, generator=torch.Generator().manual_seed(seed))
    tokens = tokens.to(view.positions.device)
    net.zero_grad()
    nll = net(tokens, Context(view, attention=attention), tokens.roll(-1, 1))
    nll.mean().backward()
    return [nll.detach(), *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_in_one_graph_with_its_network(packed, monkeypatch):
    """Losses and gradients are those of the dense way, and other documents need no other graph."""
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(layer=LayerSpec(mixer=Attention(window=WINDOW))), DIMS, 50)
    wanted = losses(net, view_of("doubled", packed))
    monkeypatch.setattr(attending, "has_kernel", lambda q, v: True)
    monkeypatch.setattr(attending, "F", None)  # PyTorch's own kernel is out of reach
    net.compile(fullgraph=True, backend="aot_eager")
    for found, dense in zip(losses(net, view_of("doubled", packed)), wanted, strict=True):
        torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-6)
    with torch.compiler.set_stance("fail_on_recompile"):
        losses(net, view_of("doubled", packed, seed=1), seed=1)


def test_compiled_by_itself_once_for_all_documents(monkeypatch):
    """As an uncompiled network uses it, with a compiler that writes no kernels."""
    compiled = functools.cache(functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(flex, "_fused", compiled)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *parts: None)
    parts = [part.requires_grad_() for part in heads()]
    compare(view_of("doubled"), parts, WINDOW, within=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        compare(view_of("doubled", seed=1), parts, WINDOW, within=1e-5)


# ------------------------------------------------------------------------------------------------------------- on a GPU
def distance(found, wanted):
    """How far off a tensor is, relative to its size."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def compare(view, parts, window, within, scale=None):
    """The kernels against the plain twin in float32, outputs and gradients."""
    out = tiled_attention(*parts, block_mask(view, window), scale)
    plain = [part.detach().float().requires_grad_() for part in parts]
    wanted = plain_attention(*plain, view.dense(window=window), scale=scale)
    probe = torch.randn_like(wanted)
    assert distance(out, wanted) < within
    found = torch.autograd.grad(out, parts, probe.to(out.dtype))
    for one, other in zip(found, torch.autograd.grad(wanted, plain, probe), strict=True):
        assert distance(one, other) < within


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_in_half_precision(kind, packed, window):
    groups = 4 if packed else 1
    view = view_of(kind, packed, device="cuda")
    compare(view, heads(groups, torch.bfloat16, "cuda", width=64), window, within=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_in_full_precision(kind):
    compare(view_of(kind, device="cuda"), heads(2, device="cuda"), WINDOW, within=1e-5, scale=0.3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "values"), [(16, 16), (32, 128), (128, 64), (128, 128)])
def test_kernels_of_every_width(width, values, dtype):
    parts = heads(2, dtype, "cuda", width, values)
    compare(view_of("doubled", device="cuda"), parts, None, within=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.gpu
def test_other_documents_need_no_other_kernel_and_no_wait_for_the_device():
    parts = heads(device="cuda")
    views = [view_of("doubled", seed=seed, device="cuda") for seed in range(3)]
    tiled_attention(*parts, block_mask(views[0])).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            for view in views[1:]:
                tiled_attention(*parts, block_mask(view)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", ["causal", "doubled", "annealed"])
def test_a_compiled_step_is_the_dense_one(kind, precision):
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(layer=LayerSpec(mixer=Attention(window=WINDOW))), DIMS, 50).cuda()
    dense = losses(net, view_of(kind, device="cuda"), attention="dense")
    net.compile(fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        found = losses(net, view_of(kind, device="cuda"))
        with torch.compiler.set_stance("fail_on_recompile"):
            losses(net, view_of(kind, seed=1, device="cuda"), seed=1)
    for one, other in zip(found, dense, strict=True):
        assert distance(one, other) < (1e-4 if precision == "float32" else 5e-2)
