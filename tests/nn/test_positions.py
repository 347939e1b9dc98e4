"""Rotary and learned positions."""

import math

import pytest
import torch

from lit_small_lm.context import Context, Trace, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.positions import Learned, NoPositions, Rotary, _kept_table


def context(positions):
    return Context(Visibility(torch.tensor([positions])))


def test_rotary_by_hand():
    """Channel i is paired with channel i + half; position p turns the pair by p * base**(-2i/width)."""
    rotate = Rotary(base=100.0).rotate(4)
    q = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 4)
    turned, _ = rotate(q, q, context([7]))
    angles = (7.0, 7.0 / 10)
    wanted = [
        1 * math.cos(angles[0]) - 3 * math.sin(angles[0]),
        2 * math.cos(angles[1]) - 4 * math.sin(angles[1]),
        3 * math.cos(angles[0]) + 1 * math.sin(angles[0]),
        4 * math.cos(angles[1]) + 2 * math.sin(angles[1]),
    ]
    torch.testing.assert_close(turned.flatten().tolist(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_scores_depend_on_the_distance_alone(share):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind(0)
    scores = []
    for start in (0, 5, 1000):
        rotate = Rotary(share=share).rotate(8)
        turned_q, _ = rotate(q, k, context([start + 3]))
        _, turned_k = rotate(q, k, context([start]))
        scores.append((turned_q * turned_k).sum().item())
    assert scores[1] == pytest.approx(scores[0], rel=1e-9)
    assert scores[2] == pytest.approx(scores[0], rel=1e-9)
    assert scores[0] != pytest.approx((q * k).sum().item(), rel=1e-3)


def test_a_share_leaves_the_other_channels_alone():
    q = torch.randn(1, 2, 3, 8)
    turned, _ = Rotary(share=0.5).rotate(8)(q, q, context([1, 2, 3]))
    assert torch.equal(turned[..., 4:], q[..., 4:])
    assert not torch.isclose(turned[..., :4], q[..., :4]).all(-1).any()


@pytest.mark.parametrize(("head_dim", "share"), [(5, 1.0), (6, 0.5), (8, 0.01)])
def test_an_odd_number_of_rotated_channels_is_refused(head_dim, share):
    with pytest.raises(RequestError, match=f"positions.share {share} of head_dim {head_dim} rotates"):
        Rotary(share=share).rotate(head_dim)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_what_is_compiled_is_the_same(share):
    """Halves are exchanged in another way, and the table is an operator; the plain twin is what runs uncompiled."""
    q, ctx, rotate = torch.randn(2, 3, 4, 8, requires_grad=True), context([1, 2, 5, 6]), Rotary(share=share).rotate(8)
    probe, found = torch.randn_like(q), []
    for turn in (rotate, torch.compile(rotate, backend="aot_eager", fullgraph=True)):
        turned, _ = turn(q, q, Context(ctx.visibility, trace=Trace()))
        found.append([turned, *torch.autograd.grad(turned, q, probe)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_table_is_a_sound_operator():
    torch.library.opcheck(_kept_table, (torch.tensor([[0, 7]]), torch.tensor([-0.1, 0.1]), torch.bfloat16))


def test_the_table_is_made_once_a_pass(monkeypatch):
    calls, rotate = [], [Rotary(base=base).rotate(8) for base in (10.0, 10.0, 20.0)]
    for module in rotate:
        monkeypatch.setattr(module, "table", lambda *args, table=module.table: calls.append(1) or table(*args))
    q, ctx = torch.randn(1, 1, 2, 8), context([0, 1])
    for module in rotate:
        module(q, q, ctx)
    assert len(calls) == 2  # one for each base


def test_half_precision_angles_are_computed_in_float32():
    """In bfloat16, position 1001 would be rounded to 1000: half a turn off for the fastest pair."""
    rotate = Rotary().rotate(8)
    cos, sin = rotate.table(torch.tensor([[1001]]), torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    assert cos.flatten()[0].item() == pytest.approx(math.cos(1001), abs=4e-3)  # bfloat16 keeps 8 bits
    assert (-sin).flatten()[0].item() == sin.flatten()[4].item() == pytest.approx(math.sin(1001), abs=4e-3)


def test_learned_positions_follow_the_document():
    table = Learned(length=5).embed(4)
    x = torch.zeros(1, 4, 4)
    out = table(x, context([0, 1, 2, 0]))
    assert torch.equal(out[0], table.table.weight[[0, 1, 2, 0]])


def test_limits():
    assert (Learned(length=5).limit(), Rotary().limit(), NoPositions().limit()) == (5, None, None)
