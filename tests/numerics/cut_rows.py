"""Rows of all kinds of visibility, queries, keys and values for them, and the comparison of two ways to attend."""

import torch

from lit_small_lm.context import Visibility

ROWS, HALF = 2, 45
"""Rows, and columns of a row or of each half: five pieces of eight, the last of them with five columns more."""
KINDS = ("causal", "bidirectional", "annealed", "block", "doubled", "doubled, clean causal")


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


def parts_of(view, groups=2, values=4, dtype=torch.float64, width=4):
    """Queries, keys and values as a mixer hands them on: views of one tensor (B, T, heads, width)."""
    torch.manual_seed(0)
    rows, time = view.positions.shape
    sizes = (4, width), (groups, width), (groups, values)
    return [torch.randn(rows, time, *size, dtype=dtype).transpose(1, 2).requires_grad_() for size in sizes]


def assert_equal_with_gradients(found, wanted, parts, **tolerance):
    torch.testing.assert_close(found, wanted, **tolerance)
    probe = torch.randn_like(wanted)
    grads = (torch.autograd.grad(out, parts, probe, retain_graph=True) for out in (found, wanted))
    pairs = zip(*grads, strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, **tolerance)
