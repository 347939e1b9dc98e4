"""Products by oneDNN against their plain twin `F.linear`, gradients included, and where they are taken."""

import subprocess
import sys

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm import products
from lit_small_lm.products import linear, pays
from lit_small_lm.roles import Linear

ROWS, INPUTS, OUTPUTS = 96, 24, 40

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build has no oneDNN")


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """As on a processor that oneDNN suits, for products of any size."""
    monkeypatch.setattr(products, "SUITED", True)
    monkeypatch.setattr(products, "LEAST_WORK", 1)


def problem(*rows):
    torch.manual_seed(0)
    h = torch.randn(*rows, INPUTS, requires_grad=True)
    return h, torch.randn(OUTPUTS, INPUTS, requires_grad=True), torch.randn(OUTPUTS, requires_grad=True)


def compare(found, wanted, inputs):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    probe = torch.randn_like(wanted)
    pairs = zip(torch.autograd.grad(found, inputs, probe), torch.autograd.grad(wanted, inputs, probe), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [(ROWS,), (2, ROWS // 2), (2, 3, ROWS // 6)], ids=str)
def test_equals_the_plain_twin(rows):
    h, weight, bias = problem(*rows)
    assert pays(h, weight)
    compare(linear(h, weight), F.linear(h, weight), [h, weight])
    compare(linear(h, weight, bias), F.linear(h, weight, bias), [h, weight, bias])


def test_views_and_transposed_matrices_are_read_as_they_lie():
    h, weight, _ = problem(OUTPUTS * 2)
    every_other, turned = torch.cat([h, h], 1)[:, ::2], weight.t().contiguous().t()
    compare(linear(every_other, turned), F.linear(every_other, turned), [h, weight])


def test_can_be_differentiated_twice():
    h, weight, _ = problem(ROWS)
    found = []
    for multiply in (linear, F.linear):
        (once,) = torch.autograd.grad(multiply(h, weight).square().sum(), h, create_graph=True)
        found.append(torch.autograd.grad(once.square().sum(), [h, weight]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_weights_that_changed_since_have_no_gradient():
    h, weight, _ = problem(ROWS)
    found = linear(h, weight)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_can_be_traced():
    h, weight, _ = (part.detach() for part in problem(ROWS))
    torch.testing.assert_close(torch.jit.trace(linear, (h, weight))(h + 1, weight), F.linear(h + 1, weight))


WITHOUT = """
import torch
class Without:
    def __getattr__(self, name): raise AttributeError(name)
torch.ops.__dict__["mkldnn"] = Without()
torch.backends.mkldnn.is_available = lambda: False
from lit_small_lm import products
assert products.linear(torch.ones(4096, 64), torch.ones(64, 64)).sum() == 4096 * 64 * 64
"""


def test_is_not_needed_where_torch_was_built_without_it():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


def test_compiles_in_one_graph_forward_and_backward():
    h, weight, bias = problem(ROWS)
    traced = []
    compiler = aot_autograd(fw_compiler=lambda graph, _: traced.append(graph) or make_boxed_func(graph))
    found = torch.compile(linear, fullgraph=True, backend=compiler)(h, weight, bias)
    compare(found, F.linear(h, weight, bias), [h, weight, bias])
    taken = [
        graph.graph.find_nodes(op="call_function", target=torch.ops.lit_small_lm.product.default) for graph in traced
    ]
    assert [len(nodes) for nodes in taken] == [1, 1]


def test_only_the_gradients_asked_for():
    h, weight, _ = problem(ROWS)
    linear(h.detach(), weight).sum().backward()
    assert h.grad is None
    assert weight.grad is not None


def test_a_processor_is_known_by_what_it_says(monkeypatch):
    said = {"cpu_name": "AMD EPYC", "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said, raising=False)
    assert products.suits_onednn()
    for other in ({"cpu_name": "Intel(R) Xeon(R)"}, {"avx512_f": False}, {"cpu_name": ""}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda other=other: {**said, **other})
        assert not products.suits_onednn()


def test_elsewhere_the_plain_twin_is_taken(monkeypatch):
    h, weight, _ = problem(ROWS)
    assert not pays(h.double(), weight.double())
    assert not pays(h.to("meta"), weight.to("meta"))
    assert not pays(h[: products.LEAST_ROWS - 1], weight)
    assert not pays(h, Labelled(weight.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(h, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not pays(h, weight)
    for name, value in {"LEAST_WORK": ROWS * weight.numel() + 1, "LONGEST": INPUTS - 1}.items():
        with monkeypatch.context() as patched:
            patched.setattr(products, name, value)
            assert not pays(h, weight)
    assert pays(h, weight)


class Labelled(torch.Tensor):
    """A kind of tensor that may have products of its own."""


def test_a_map_of_the_network_takes_it(monkeypatch):
    monkeypatch.setattr(products, "_onednn", lambda h, weight: h.new_full((*h.shape[:-1], len(weight)), 7.0))
    h, weight, _ = problem(ROWS)
    module = Linear(INPUTS, OUTPUTS, role="up")
    module.weight = nn.Parameter(weight.detach())
    assert (module(h) == 7).all()


def test_operations_are_counted_as_those_of_the_plain_twin():
    h, weight, _ = problem(ROWS)
    counts = []
    for multiply in (linear, F.linear):
        with FlopCounterMode(display=False) as counter:
            multiply(h, weight).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 6 * ROWS * INPUTS * OUTPUTS
