"""The kernels in C++ against their plain twins, gradients included; how they are compiled, and what happens if not."""

import functools
import math
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._functorch.config
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm import attending, products
from lit_small_lm.attending import attend
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.kernels import building
from lit_small_lm.kernels.attention import kernel_attention
from lit_small_lm.nn.attention import plain_attention
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.compiled import cache_folder, compile_network

cut_rows = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("cut_rows.py"))))
KINDS = cut_rows.KINDS
ROWS = cut_rows.ROWS
assert_equal_with_gradients = cut_rows.assert_equal_with_gradients
HALF = 83
"""Columns of a row or of each half: a strip of 64 queries, and what is left."""
view_of = functools.partial(cut_rows.view_of, half=HALF)
parts_of = functools.partial(cut_rows.parts_of, values=12, width=8, dtype=torch.float32)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_twin(kind, packed, window):
    view = view_of(kind, packed)
    parts = parts_of(view)
    fast = kernel_attention(*parts, view.turned(window), kind == "causal", scale=0.3)
    assert fast.transpose(1, 2).is_contiguous()
    plain = plain_attention(*parts, view.dense(window=window), scale=0.3)
    assert_equal_with_gradients(fast, plain, parts, **CLOSE)


@pytest.mark.parametrize("columns", [1, 5, 16, 63, 64, 65, 200])
@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_rows_that_are_not_cut(kind, columns):
    view = view_of(kind, False, half=columns)
    parts = parts_of(view, width=17, values=3)
    fast = kernel_attention(*parts, None, kind == "causal")
    assert_equal_with_gradients(fast, plain_attention(*parts, view.dense()), parts, **CLOSE)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_heads_share_keys(groups):
    view = view_of("doubled", True)
    parts = parts_of(view, groups=groups)
    fast = kernel_attention(*parts, view.turned(), False)
    assert_equal_with_gradients(fast, plain_attention(*parts, view.dense()), parts, **CLOSE)


def test_any_layout_is_read():
    """Channels that do not lie side by side, and a gradient that is one number for all."""
    view = view_of("causal", False)
    parts = [part.detach().mT.contiguous().mT.requires_grad_() for part in parts_of(view)]
    fast, plain = kernel_attention(*parts, None, True), plain_attention(*parts, view.dense())
    torch.testing.assert_close(fast, plain, **CLOSE)
    for one, other in zip(*(torch.autograd.grad(out.sum(), parts) for out in (fast, plain)), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_low_precision_is_rounded_once():
    view = view_of("causal", True)
    parts = parts_of(view)
    with torch.autocast("cpu", torch.bfloat16):
        fast = kernel_attention(*parts, view.turned(), True)
    assert fast.dtype == torch.bfloat16
    exact = [part.detach().bfloat16().double().requires_grad_() for part in parts]
    plain = plain_attention(*exact, view.dense())
    torch.testing.assert_close(fast, plain.bfloat16(), rtol=2**-8, atol=1e-6)
    probe = torch.randn_like(fast)
    wanted = torch.autograd.grad(plain, exact, probe.double())
    for one, other in zip(torch.autograd.grad(fast, parts, probe), wanted, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(value):
    q, k, v = (part.detach() for part in parts_of(view_of("causal", False)))
    for part in (q, k, v):
        part[0, 0, 7, 0] = value
        found = kernel_attention(q, k, v, None, True)
        assert not found[0, 0].isfinite().all() and found[1].isfinite().all()
        part[0, 0, 7, 0] = 0


def test_large_scores_do_not_overflow():
    parts = [part.detach().mul(100).requires_grad_() for part in parts_of(view_of("causal", False))]
    out = kernel_attention(*parts, None, True)
    assert all(found.isfinite().all() for found in (out, *torch.autograd.grad(out.sum(), parts)))


def test_the_same_bits_whatever_the_threads():
    view = view_of("doubled", True)
    parts, threads = parts_of(view), torch.get_num_threads()
    seen = view.turned()

    def run(count):
        torch.set_num_threads(count)
        out = kernel_attention(*parts, seen, False)
        return [out, *torch.autograd.grad(out, parts, torch.ones_like(out))]

    try:
        assert all(torch.equal(one, other) for one, other in zip(run(1), run(3), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_the_operators_keep_what_operators_promise():
    parts = [part.detach().requires_grad_() for part in parts_of(view_of("causal", False))]
    view = view_of("causal", True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for seen in (None, view.turned()):
        arguments = (*parts, seen, True, 0.3)
        torch.library.opcheck(torch.ops.lit_small_lm.attention.default, arguments, test_utils=tests)
    pair = torch.randn(70, 40), torch.randn(70, 24)
    torch.library.opcheck(torch.ops.lit_small_lm.product_by_weight.default, pair, test_utils=tests[::2])


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_operations_are_counted(kind):
    parts = parts_of(view_of(kind, False))
    with FlopCounterMode(display=False) as counter:
        kernel_attention(*parts, None, kind == "causal").sum().backward()
    cut = [(64, 64), (19, 83)] if kind == "causal" else [(83, 83)]
    pairs = sum(queries * keys for queries, keys in cut) * ROWS * 4
    assert counter.get_total_flops() == 2 * pairs * ((8 + 12) + (3 * 8 + 2 * 12))


@pytest.mark.parametrize("sizes", [(1300, 24, 40), (70, 300, 17), (5, 3, 2), (513, 64, 64), (0, 3, 2)], ids=str)
def test_a_sum_over_rows(sizes):
    rows, outputs, inputs = sizes
    torch.manual_seed(0)
    grad, h = torch.randn(outputs, rows).t(), torch.randn(rows, inputs)
    found = torch.ops.lit_small_lm.product_by_weight(grad, h)
    torch.testing.assert_close(found, grad.t() @ h, rtol=1e-4, atol=1e-3)


def test_a_mask_is_read_however_it_lies():
    """What lays tensors out for a compiled network does not keep to how they were made."""
    view = view_of("causal", True)
    parts, wanted, found = [part.detach() for part in parts_of(view)], [], []
    for seen, results in ((view.turned(), wanted), (view.turned().mT.contiguous().mT, found)):
        out, logs = torch.ops.lit_small_lm.attention(*parts, seen, False, 0.3)
        results += [out, logs, *torch.ops.lit_small_lm.attention_backward(out, *parts, out, logs, seen, False, 0.3)]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("seen_by", ["itself", "every seventh", "the last"])
def test_blocks_of_keys_that_nobody_sees_are_left_out(seen_by):
    """Runs of them anywhere, of which none, one or many are left to a strip of queries."""
    columns = 300
    query, key = torch.arange(columns), torch.arange(columns).unsqueeze(1)
    seen = {
        "itself": query == key, "every seventh": (query == key) | ((key // 64) % 2 == 0) & (query % 7 == 0),
        "the last": (key == columns - 1).expand(columns, columns),
    }[seen_by].expand(1, 1, columns, columns)  # fmt: skip
    parts = parts_of(view_of("causal", False, half=columns))
    fast = kernel_attention(*parts, seen)
    assert_equal_with_gradients(fast, plain_attention(*parts, seen.mT), parts, **CLOSE)


def test_queries_that_see_nothing_have_no_answer():
    """As with the plain twin; no Visibility has such."""
    q, k, v = (part.detach() for part in parts_of(view_of("causal", False, half=100)))
    seen = torch.ones(1, 1, 100, 100, dtype=torch.bool)
    seen[..., 64:] = False
    found = kernel_attention(q, k, v, seen)
    torch.testing.assert_close(found, plain_attention(q, k, v, seen.mT), equal_nan=True, **CLOSE)
    assert found[:, :, 64:].isnan().all()


def test_what_would_be_read_past_its_end_is_refused():
    view = view_of("causal", True)
    seen, (q, k, v) = view.turned(), (part.detach() for part in parts_of(view))
    for wrong in (
        (q, k, v.bfloat16(), None), (q.double(), k.double(), v.double(), None), (q, k[:, :, :-1], v, None),
        (q, k, v[:1], None), (q[:, :3], k, v, None), (q, k[..., :-1], v, None), (q, k, v, seen[..., :-1]),
        (q, k, v, seen.repeat(2, 1, 1, 1)), (q, k, v, seen.float()), (q, k, v, seen[:0]), (q, k, v, seen[:, 0]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="attention: "):
            torch.ops.lit_small_lm.attention(*wrong, False, 0.3)
    with pytest.raises(RuntimeError, match="as many rows"):
        torch.ops.lit_small_lm.product_by_weight(torch.ones(3, 2), torch.ones(4, 2))


@pytest.fixture
def taken(monkeypatch):
    """How often a compiled network came past the kernels: of attention, and of gradients by weights."""
    seen = []

    def noted(name, kernel):
        def note(*args, **settings):
            seen.append(name)
            return kernel(*args, **settings)

        return note

    monkeypatch.setattr(attending, "kernel_attention", noted("attention", attending.kernel_attention))
    monkeypatch.setattr(products, "gradient_by_weight", noted("products", products.gradient_by_weight))
    monkeypatch.setattr(products, "SUITED", True)
    monkeypatch.setattr(products, "LEAST_WORK", 1)
    torch.compiler.reset()
    yield seen
    torch.compiler.reset()


@pytest.mark.parametrize("kind", KINDS)
@torch._functorch.config.patch(donated_buffer=False)  # the comparison keeps both graphs
def test_compiled_networks_take_them(kind, taken):
    """Inductor's code, which calls them, against the plain twins of the same layer."""
    view = view_of(kind, kind in ("causal", "doubled"), half=200)
    width, time = 16, view.positions.shape[1]
    torch.manual_seed(0)
    h, weight = torch.randn(ROWS, time, width), torch.randn(3 * width, width, requires_grad=True)

    def mix(h, attend):
        q, k, v = products.linear(h, weight).unflatten(-1, (3, 2, width // 2)).permute(2, 0, 3, 1, 4).unbind()
        return attend(q, k, v)

    plain = mix(h, lambda *parts: plain_attention(*parts, view.dense()))
    taken.clear()
    ctx = Context(view)
    fast = torch.compile(mix, fullgraph=True)(h, lambda *parts: attend(*parts, ctx))
    assert_equal_with_gradients(fast, plain, [weight], rtol=1e-3, atol=1e-3)
    assert set(taken) == {"attention", "products"}


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@torch._functorch.config.patch(donated_buffer=False)  # the comparison keeps both graphs
def test_a_graph_for_rows_of_many_widths_takes_them(packed):
    torch.compiler.reset()
    compiled = torch.compile(lambda ctx, *parts: attend(*parts, ctx), fullgraph=True)

    def compare(half):
        view = view_of("doubled", packed, half=half)
        parts = parts_of(view)
        wanted = plain_attention(*parts, view.dense())
        assert_equal_with_gradients(compiled(Context(view), *parts), wanted, parts, **CLOSE)

    compare(70), compare(71)  # of a second width, torch.compile learns that widths vary
    with torch.compiler.set_stance("fail_on_recompile"), torch.profiler.profile() as found:
        compare(85)
    assert any(event.name == "lit_small_lm::attention_backward" for event in found.events())
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), [("causal", "layers"), ("doubled", "default")])
def test_gradients_of_a_compiled_network(kind, mode, taken):
    """Cut rows, whose masks are made within the graph, once for all layers and again in the backward pass."""
    shape = FixedShape(dim=32, n_layers=2, n_heads=2, n_kv_heads=1, hidden=32)
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(), shape.resolve(), 50)
    tokens = torch.randint(50, (8, 128 if kind == "doubled" else 192))
    docs = (torch.arange(tokens.shape[1]) + 13 * torch.arange(8).unsqueeze(1)) // 80
    view = Visibility.rows(tokens, docs)
    if kind == "doubled":
        view, tokens = view.doubled(4), torch.cat([tokens.roll(1, 1), tokens], 1)

    def gradients():
        net.zero_grad()
        net(tokens, Context(view), tokens.roll(-1, 1)).mean().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    wanted = gradients()
    compile_network(net, mode)
    found = gradients()
    assert "attention" in taken
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_eager_networks_do_not():
    view = view_of("causal", False)
    with FlopCounterMode(display=False) as counter:
        attend(*parts_of(view), Context(view))
    assert torch.ops.lit_small_lm.attention not in counter.get_flop_counts()["Global"]


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not tried yet."""
    monkeypatch.setattr(building, "_found", {})


@pytest.fixture
def copied(monkeypatch):
    """How often they were compiled, by a compiler that copies what there is."""
    whole, calls = next(cache_folder().glob(f"{building._name()}_*.so")), []

    def compiled(command, **options):
        calls.append(command)
        shutil.copy(whole, command[command.index("-o") + 1])

    monkeypatch.setattr(subprocess, "run", compiled)
    monkeypatch.setattr(torch.ops, "load_library", lambda file: None)  # they are loaded once, from where they stay
    return calls


def test_they_are_compiled_once(fresh, copied, tmp_path):
    for _ in range(2):
        building.load(tmp_path)
        assert building.loaded() and len(copied) == 1 and len(list(tmp_path.iterdir())) == 1
        building._found.clear()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_fails_is_said_in_one_line(fresh, tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match="kernels of this package are not used") as said:
        building.load(tmp_path)
    assert not building.loaded() and list(tmp_path.iterdir()) == []
    assert len(said) == 1 and "\n" not in str(said[0].message)


@pytest.mark.parametrize("left", [0, 60_000, -1])
def test_a_damaged_file_is_made_anew(fresh, copied, tmp_path, left):
    """Loading one that was cut short would end the process by a signal."""
    building.load(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    building._found.clear()
    building.load(tmp_path)
    assert building.loaded() and len(copied) == 2 and file.read_bytes() == whole


def test_a_user_can_do_without(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv(building.VARIABLE, "off")
    building.load(tmp_path)
    assert not building.loaded() and list(tmp_path.iterdir()) == []


def test_another_answer_is_refused(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv(building.VARIABLE, "no")
    with pytest.raises(RequestError, match="LIT_SMALL_LM_KERNELS: no; allowed: on, off"):
        building.load(tmp_path)


def test_other_processors_do_without():
    """The capability is fixed when torch is imported, hence a process of its own."""
    code = (
        "from pathlib import Path; from lit_small_lm.kernels import building; building.load(Path('/nowhere'));"
        "print(building.suited(), building.loaded())"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["False", "False"]
