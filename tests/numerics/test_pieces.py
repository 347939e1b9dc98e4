"""Attention by pieces against the whole mask, gradients included; which rows are cut, and how."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm import pieces
from lit_small_lm.attending import attend
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.nn.attention import plain_attention
from lit_small_lm.pieces import MOST, Grid, plan
from lit_small_lm.shapes import FixedShape

ROWS, HALF = 2, 45
"""Rows, and columns of a row or of each half: five pieces of eight, the last of them with five columns more."""
KINDS = ("causal", "bidirectional", "annealed", "block", "doubled", "doubled, clean causal")
DIMS = FixedShape(dim=16, n_layers=1, n_heads=4, n_kv_heads=2, hidden=16).resolve()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "LENGTH", 8)
    monkeypatch.setattr(pieces, "LEAST", 40)


def view_of(kind, packed, size=3, half=HALF):
    """Rows of three documents that begin elsewhere in each row, or of one."""
    column = torch.arange(half).expand(ROWS, half)
    docs = (column >= torch.tensor([[7], [20]])).long() + (column >= 30).long() if packed else None
    rows = Visibility.rows(column, docs)
    if kind.startswith("doubled"):
        return rows.doubled(size, "block" if kind == "doubled" else "causal")
    if kind == "annealed":
        return rows.annealed(0.3, 7)
    return Visibility.rows(column, docs, kind, block_size=size)


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
    made, time = plan(view, window, torch.float64), view.positions.shape[1]
    if shown_all(kind, window, size):
        assert made is None
        return
    found, column = torch.zeros(ROWS, time, time, dtype=torch.bool), torch.arange(time).unsqueeze(0)
    for piece, bias in zip(made.pieces, made.biases, strict=True):
        cut = pieces.Slices(column, 1, made.half, [piece.queries, *piece.keys])
        q, k = cut.take(piece.queries)[0].unsqueeze(-1), cut.take(*piece.keys)[0]
        assert not found[:, q, k].any()
        found[:, q, k] = bias[:, 0] == 0
        assert ((bias == 0) | (bias == -math.inf)).all()
    assert torch.equal(found, view.dense(window=window)[:, 0])


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_twin(kind, packed, window):
    torch.manual_seed(0)
    view = view_of(kind, packed)
    q, k, v = (
        torch.randn(ROWS, heads, view.positions.shape[1], 4, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    fast = attend(q, k, v, Context(view), window, scale=0.3)
    plain = plain_attention(q, k, v, view.dense(window=window), scale=0.3)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    probe = torch.randn_like(plain)
    found, wanted = (torch.autograd.grad(out, (q, k, v), probe) for out in (fast, plain))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.fixture
def computed(monkeypatch):
    """`computed(q, k, v, ctx, ...)` -> pairs of a query and a key that PyTorch's kernel was given, call by call."""
    kernel, seen = F.scaled_dot_product_attention, []

    def note(q, k, *args, **kwargs):
        seen.append(q.shape[2] * k.shape[2])
        return kernel(q, k, *args, **kwargs)

    def count(*args, **kwargs):
        seen.clear()
        attend(*args, **kwargs)
        return list(seen)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    return count


def test_which_rows_are_cut(computed, monkeypatch):
    parts, view = torch.randn(3, ROWS, 2, HALF, 4).unbind(), view_of("causal", True)
    assert len(computed(*parts, Context(view))) == 5
    assert len(computed(*parts, Context(view_of("causal", False)), window=4)) == 5
    whole = [HALF * HALF]
    assert computed(*parts, Context(view_of("bidirectional", True))) == whole
    assert computed(*parts, Context(view_of("causal", False))) == whole
    assert computed(*parts, Context(view, Cache())) == whole
    assert computed(*parts, Context(view, attention="dense")) == whole
    assert computed(*parts, Context(view), dropout=0.1) == whole
    monkeypatch.setattr(pieces, "LEAST", HALF + 1)
    assert computed(*parts, Context(view)) == whole


def test_a_doubled_row_costs_little_more_than_a_quarter(computed, monkeypatch):
    monkeypatch.setattr(pieces, "LENGTH", 64)
    time = 320
    parts, view = torch.randn(3, ROWS, 2, 2 * time, 4).unbind(), view_of("doubled", True, size=4, half=time)
    assert sum(computed(*parts, Context(view))) < 0.37 * (2 * time) ** 2


def test_there_are_few_pieces_however_long_rows_are():
    grids = [Grid.of(columns) for columns in range(8, 5000)]
    assert {grid.count for grid in grids} == set(range(1, MOST))
    assert all(0 <= columns - grid.length * grid.count < grid.length for columns, grid in enumerate(grids, 8))


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
