"""The grouped product against its plain twin and against a loop, gradients included."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm import grouped
from lit_small_lm.grouped import grouped_linear, kernel_takes

ENDS = [0, 5, 5, 11, 12, 12]
"""Six groups of which three are empty, the first and the last among them."""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def problem(dtype, width=16, out=24, requires_grad=True):
    torch.manual_seed(0)
    rows = torch.randn(ENDS[-1], width, dtype=dtype, requires_grad=requires_grad)
    weights = [torch.randn(out, width, dtype=dtype, requires_grad=requires_grad) for _ in ENDS]
    return rows, weights, torch.tensor(ENDS, dtype=torch.int32)


def loop(rows, weights, ends):
    starts = [0, *ends.tolist()[:-1]]
    return torch.cat([rows[a:b] @ w.T for a, b, w in zip(starts, ends.tolist(), weights, strict=True)])


def compare(found, wanted, inputs, tolerance):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    probe = torch.randn_like(wanted)
    pairs = zip(torch.autograd.grad(found, inputs, probe), torch.autograd.grad(wanted, inputs, probe), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("width", "out"), [(16, 24), (6, 24), (16, 10), (5, 7)])
def test_equals_the_loop(dtype, width, out):
    rows, weights, ends = problem(dtype, width, out)
    compare(grouped_linear(rows, weights, ends), loop(rows, weights, ends), [rows, *weights], TOLERANCE[dtype])


def test_the_kernel_and_the_plain_twin_agree(monkeypatch):
    rows, weights, ends = problem(torch.float32)
    assert kernel_takes(16, 24, like=rows)
    fast = grouped_linear(rows, weights, ends)
    probe = torch.randn_like(fast)
    gradients = torch.autograd.grad(fast, [rows, *weights], probe)
    monkeypatch.setattr(grouped, "kernel_takes", lambda *widths, like: False)
    plain = grouped_linear(rows, weights, ends)
    torch.testing.assert_close(plain, fast, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(plain, [rows, *weights], probe), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "width", "taken"),
    [(torch.float32, 4, True), (torch.float32, 6, False), (torch.bfloat16, 8, True), (torch.bfloat16, 4, False),
     (torch.float64, 8, False)],
)  # fmt: skip
def test_where_the_kernel_goes(dtype, width, taken):
    assert kernel_takes(width, 16, like=torch.zeros(1, dtype=dtype)) is taken


def test_gradients_are_right_to_second_digits_of_a_difference():
    """Against finite differences, which know nothing of either path."""
    rows, weights, ends = problem(torch.float64, 5, 7)
    assert torch.autograd.gradcheck(lambda rows, *weights: grouped_linear(rows, weights, ends), (rows, *weights))


def test_an_expanded_gradient_is_taken():
    rows, weights, ends = problem(torch.float32)
    grouped_linear(rows, weights, ends).sum().backward()
    wanted = torch.stack(weights).detach().sum(1)[[1] * 5 + [3] * 6 + [4]]
    torch.testing.assert_close(rows.grad, wanted, rtol=1e-5, atol=1e-5)
    assert [bool(weight.grad.any()) for weight in weights] == [False, True, False, True, True, False]


def test_autocast_decides_the_dtype_and_gradients_keep_their_own():
    rows, weights, ends = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_linear(rows, weights, ends)
    assert found.dtype == torch.bfloat16
    gradients = torch.autograd.grad(found, [rows, *weights], torch.ones_like(found))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    torch.testing.assert_close(found.float(), loop(rows, weights, ends), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_graph_and_no_values_on_the_meta_device(dtype):
    """PyTorch's own operation knows neither compilation nor the meta device but in bfloat16."""
    rows, weights, ends = problem(dtype)
    torch.compiler.reset()
    compiled = torch.compile(grouped_linear, fullgraph=True, backend="aot_eager")
    compare(compiled(rows, weights, ends), loop(rows, weights, ends), [rows, *weights], TOLERANCE[dtype])
    there = grouped_linear(rows.to("meta"), [weight.to("meta") for weight in weights], ends.to("meta"))
    assert (there.shape, there.dtype, there.is_meta) == ((12, 24), dtype, True)


def test_an_operation_counter_sees_the_work():
    rows, weights, ends = problem(torch.float32)
    with FlopCounterMode(display=False) as counter:
        grouped_linear(rows, weights, ends).square().sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 12 * 16 * 24
