"""Attention by pieces against the whole mask, gradients included; which rows are cut, and how."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm import attending, pieces, piecewise
from lit_small_lm.attending import attend
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.nn.attention import plain_attention
from lit_small_lm.pieces import MOST, Division, Grid, spares
from lit_small_lm.piecewise import piecewise_attention
from lit_small_lm.shapes import FixedShape

cut_rows = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("cut_rows.py"))))
HALF = cut_rows.HALF
KINDS = cut_rows.KINDS
ROWS = cut_rows.ROWS
assert_equal_with_gradients = cut_rows.assert_equal_with_gradients
parts_of = cut_rows.parts_of
view_of = cut_rows.view_of
DIMS = FixedShape(dim=16, n_layers=1, n_heads=4, n_kv_heads=2, hidden=16).resolve()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "LENGTH", 8)
    monkeypatch.setattr(piecewise, "LEAST", dict.fromkeys(piecewise.LEAST, (40, 0)))
    piecewise.causal_rows.cache_clear()
    yield
    piecewise.causal_rows.cache_clear()


def shown_all(kind, window, size):
    """Whether a query may see every key of its row, wherever documents begin."""
    return window is None and (kind in ("bidirectional", "annealed") or (kind in ("block", "doubled") and size is None))


@pytest.mark.parametrize("size", [3, 20, None])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_together_are_the_dense_mask(kind, packed, window, size):
    """No visible pair is left out, and no other one is let in."""
    view = view_of(kind, packed, size)
    made, time = Division.of(view, window), view.positions.shape[1]
    assert spares(view, window) != shown_all(kind, window, size)
    found, column = torch.zeros(ROWS, time, time, dtype=torch.bool), torch.arange(time).unsqueeze(0)
    for piece, bias in zip(made.pieces, made.biases, strict=True):
        q, k = piece.queries.of(column, 1)[0].unsqueeze(-1), torch.cat([run.of(column, 1)[0] for run in piece.keys])
        assert not found[:, q, k].any()
        found[:, q, k] = bias[:, 0] == 0
        assert ((bias == 0) | (bias == -math.inf)).all()
    assert torch.equal(found, view.dense(window=window)[:, 0])


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_turned_mask_is_the_dense_one(kind, packed, window):
    view = view_of(kind, packed)
    turned = view.turned(window)
    assert len(turned) == (ROWS if view.layout is None else 1)
    assert torch.equal(turned.mT.expand(ROWS, -1, -1, -1), view.dense(window=window))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_twin(kind, packed, window):
    view = view_of(kind, packed)
    parts = parts_of(view)
    plain = plain_attention(*parts, view.dense(window=window), scale=0.3)
    by_pieces = piecewise_attention(*parts, Division.of(view, window), scale=0.3)
    for fast in (by_pieces, attend(*parts, Context(view), window, scale=0.3)):
        assert_equal_with_gradients(fast, plain, parts, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scores", [1, 8 * HALF, 16 * HALF, 1 << 20], ids=["head", "heads", "row", "rows"])
@pytest.mark.parametrize("kind", ["causal", "doubled"])
def test_however_many_heads_are_worked_on_at_once(kind, scores, monkeypatch):
    """Values wider than keys, grouped heads, the layout that projections leave behind; three rows."""
    monkeypatch.setattr(piecewise, "SCORES", scores)
    for docs in (None, torch.arange(HALF).expand(3, HALF) // 17 + torch.arange(3).unsqueeze(1)):
        view = Visibility.rows(torch.zeros(3, HALF), docs)
        view = view if kind == "causal" else view.doubled(3)
        parts = parts_of(view, values=6)
        fast = piecewise_attention(*parts, Division.of(view))
        assert fast.transpose(1, 2).is_contiguous()
        assert_equal_with_gradients(fast, plain_attention(*parts, view.dense()), parts, rtol=1e-10, atol=1e-12)


def test_causal_rows_are_cut_within_the_operator():
    view = view_of("causal", False)
    parts = parts_of(view)
    for fast in (piecewise_attention(*parts, None), attend(*parts, Context(view))):
        assert "piecewise" in fast.grad_fn.name()
        assert_equal_with_gradients(fast, plain_attention(*parts, view.dense()), parts, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_small_steps():
    view = view_of("doubled", True, half=11)
    division = Division.of(view)
    assert torch.autograd.gradcheck(lambda *parts: piecewise_attention(*parts, division), parts_of(view, width=2))


def test_the_operator_keeps_what_operators_promise():
    parts = [part.detach().requires_grad_() for part in parts_of(view_of("causal", False), dtype=torch.float32)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.lit_small_lm.piecewise_attention.default, (*parts, [], None, 0.3), test_utils=tests)


def test_twice_the_same_is_bit_for_bit_the_same():
    view = view_of("doubled", True)
    parts = parts_of(view, dtype=torch.float32)

    def run():
        out = attend(*parts, Context(view))
        return [out, *torch.autograd.grad(out, parts, torch.ones_like(out))]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_low_precision_is_rounded_once():
    """Under autocast inputs and output are bfloat16, and what lies between is not."""
    view = view_of("causal", True)
    parts = parts_of(view, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        fast = attend(*parts, Context(view))
    assert fast.dtype == torch.bfloat16
    exact = plain_attention(*(part.bfloat16().double() for part in parts), view.dense())
    assert torch.equal(fast, exact.bfloat16())
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(fast.sum(), parts))


@pytest.fixture
def computed(monkeypatch):
    """`computed(q, k, v, ctx, ...)` -> pairs of a query and a key that are computed, call by call."""
    kernel, seen = F.scaled_dot_product_attention, []

    def note(q, k, *args, **kwargs):
        seen.append(q.shape[2] * k.shape[2])
        return kernel(q, k, *args, **kwargs)

    def count(q, k, v, *args, **kwargs):
        seen.clear()
        with FlopCounterMode(display=False) as counter:
            attend(q, k, v, *args, **kwargs)
        flops = counter.get_flop_counts().get("Global", {}).get(torch.ops.lit_small_lm.piecewise_attention)
        return seen + ([] if flops is None else [flops / (2 * q.shape[0] * q.shape[1] * (q.shape[3] + v.shape[3]))])

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    return count


def test_which_rows_are_cut(computed, monkeypatch):
    parts, view = torch.randn(3, ROWS, 2, HALF, 4).unbind(), view_of("causal", True)
    pieces, whole = [8 * (8 + 16 + 24 + 32) + 13 * HALF], [HALF * HALF]
    assert computed(*parts, Context(view)) == pieces
    assert computed(*parts, Context(view_of("causal", False))) == pieces
    assert computed(*parts, Context(view), window=4) == [8 * (8 + 3 * 11) + 13 * 16]
    assert computed(*parts, Context(view_of("causal", False)), window=4) == [8 * (8 + 3 * 11) + 13 * 16]
    for some in (view, view_of("causal", False)):
        assert computed(*parts, Context(some, Cache())) == whole
        assert computed(*parts, Context(some, attention="dense")) == whole
        assert computed(*parts, Context(some), dropout=0.1) == whole
    assert computed(*parts, Context(view_of("bidirectional", True))) == whole
    assert computed(*parts, Context(view_of("bidirectional", False))) == whole
    monkeypatch.setattr(attending, "LONGEST_CAUSAL", HALF)
    assert computed(*parts, Context(view)) == pieces
    assert computed(*parts, Context(view_of("causal", False))) == whole
    for least in ((HALF + 1, 0), (1, parts[0].numel() * HALF + 1)):
        monkeypatch.setattr(piecewise, "LEAST", {"float32": least})
        assert computed(*parts, Context(view)) == whole


def test_which_rows_are_computed_whole_by_the_operator(monkeypatch):
    """Short ones of low precision that are trained."""
    monkeypatch.setattr(piecewise, "SLOW", HALF)

    def by_operator(packed, half, dtype):
        view = view_of("bidirectional", packed, half=half)
        return "piecewise" in attend(*parts_of(view, dtype=dtype), Context(view)).grad_fn.name()

    for packed in (False, True):
        assert by_operator(packed, HALF, torch.bfloat16)
        assert not by_operator(packed, HALF, torch.float32)
        assert not by_operator(packed, HALF + 1, torch.bfloat16)
    with torch.no_grad():
        assert not piecewise.pays_without_sparing(parts_of(view_of("causal", False), dtype=torch.bfloat16)[0])


def test_a_doubled_row_costs_little_more_than_a_quarter(computed, monkeypatch):
    monkeypatch.setattr(pieces, "LENGTH", 64)
    time = 320
    parts, view = torch.randn(3, ROWS, 2, 2 * time, 4).unbind(), view_of("doubled", True, size=4, half=time)
    assert sum(computed(*parts, Context(view))) < 0.37 * (2 * time) ** 2


def test_there_are_few_pieces_however_long_rows_are():
    grids = [Grid.of(columns) for columns in range(8, 5000)]
    assert {grid.count for grid in grids} == set(range(1, MOST))
    assert all(0 <= columns - grid.length * grid.count < grid.length for columns, grid in enumerate(grids, 8))


def test_causal_rows_of_all_widths_share_a_graph():
    """And the graph has one operator, whatever is in it; layers whose activations are computed anew share it."""
    torch.compiler.reset()

    def layer(ctx, *parts):
        return checkpoint(lambda *parts: 2 * attend(*parts, ctx), *parts, use_reentrant=False)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    views = {half: view_of("causal", False, half=half) for half in (41, 50, 67, 90)}
    for index, view in enumerate(views.values()):
        parts = parts_of(view)
        with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
            fast = compiled(Context(view), *parts)
            plain = 2 * plain_attention(*parts, view.dense())
            assert_equal_with_gradients(fast, plain, parts, rtol=1e-10, atol=1e-12)
    torch.compiler.reset()


def test_rows_of_many_widths_share_a_graph(monkeypatch):
    """Compiled in one graph, which a further width of the same number of pieces does not change."""
    monkeypatch.setattr(pieces, "LENGTH", 16)
    torch.compiler.reset()
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(), DIMS, 50).double()

    def losses(half):
        view, draw = view_of("doubled", True, half=half), torch.Generator().manual_seed(half)
        tokens = torch.randint(50, view.positions.shape, generator=draw)
        net.zero_grad()
        nll = net(tokens, Context(view), tokens.roll(-1, 1))
        nll.mean().backward()
        return [nll.detach(), *(p.grad.clone() for p in net.parameters())]

    wanted = {half: losses(half) for half in (44, 47)}
    net.compile(fullgraph=True, backend="aot_eager")
    losses(45), losses(46)  # of a second width, torch.compile learns that widths vary
    with torch.compiler.set_stance("fail_on_recompile"):
        for half, eager in wanted.items():
            for one, other in zip(losses(half), eager, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
    torch.compiler.reset()


def test_a_graph_for_rows_of_many_widths_is_not_cut(monkeypatch):
    """Inductor fails at the sizes of its pieces; whole causal rows are cut within the operator."""
    cut, operator = [], attending.piecewise_attention

    def note(*args):
        cut.append(half)
        return operator(*args)

    monkeypatch.setattr(attending, "piecewise_attention", note)
    torch.compiler.reset()
    compiled = torch.compile(lambda ctx, *parts: attend(*parts, ctx), fullgraph=True, backend="aot_eager")
    for half in (45, 46, 47):  # of a second width, torch.compile learns that widths vary
        view = view_of("doubled", True, half=half)
        parts = parts_of(view)
        plain = plain_attention(*parts, view.dense())
        torch.testing.assert_close(compiled(Context(view), *parts), plain, rtol=1e-10, atol=1e-12)
    assert cut == [45]
    torch.compiler.reset()
