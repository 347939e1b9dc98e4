"""Feed-forward networks against their formulas."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.mlp import ACTIVATIONS, MLP, GatedMLP
from lit_small_lm.plugin import Dims, Site

SITE = Site(Dims(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, hidden=12), 0, "ffn")
H = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
CTX = Context(Visibility.rows(H[..., 0]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_kv_heads", [1, 2, 5])
def test_gated(activation, n_kv_heads):
    dims = dataclasses.replace(SITE.dims, n_kv_heads=n_kv_heads)
    ffn = GatedMLP(activation=activation).build(dataclasses.replace(SITE, dims=dims))
    pieces = ffn.gate_up_proj.weight.chunk(4 if n_kv_heads == 2 else 2)  # one group where heads do not divide hidden
    gate, up = torch.cat(pieces[::2]), torch.cat(pieces[1::2])
    wanted = (ACTIVATIONS[activation](H @ gate.T) * (H @ up.T)) @ ffn.down_proj.weight.T
    torch.testing.assert_close(ffn(H, CTX), wanted, rtol=1e-5, atol=1e-6)  # float32, one fused product against two


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shift", ["bias", "none"])
def test_plain(activation, shift):
    ffn = MLP(activation=activation, shift=shift).build(SITE)
    wanted = F.linear(ACTIVATIONS[activation](F.linear(H, ffn.up_proj.weight, ffn.up_proj.bias)), ffn.down_proj.weight)
    wanted = wanted if shift == "none" else wanted + ffn.down_proj.bias
    torch.testing.assert_close(ffn(H, CTX), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("silu", 2 / (1 + 2.718281828459045**-2)),
        ("relu", 2.0),
        ("relu2", 4.0),
        ("gelu", 1.9544997),
        ("gelu_tanh", 1.9545977),
    ],
)
def test_activations_at_two(name, value):
    assert ACTIVATIONS[name](torch.tensor(2.0, dtype=torch.float64)).item() == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("spec", [GatedMLP(dropout=0.5), MLP(dropout=0.5)], ids=["gated", "plain"])
def test_dropout_acts_while_training_only(spec):
    torch.manual_seed(0)
    ffn = spec.build(SITE)
    assert (ffn(H, CTX) == 0).any()
    assert not (ffn.eval()(H, CTX) == 0).any()


@pytest.mark.parametrize(("span", "width"), [("gate_up", 24), ("hidden", 12)])
def test_canon_d_mixes_gate_and_up_or_their_product(span, width):
    torch.manual_seed(0)
    site = dataclasses.replace(SITE, canon=CausalCanon(), canon_at="D")
    ffn = GatedMLP(canon_span=span).build(site)
    canon = ffn.canon if span == "gate_up" else ffn.canon_hidden
    assert canon.sum.weight.shape == (width, 4)
    gate, up = ffn.gate_up_proj.weight.chunk(2)
    if span == "gate_up":
        gate, up = canon(torch.cat([H @ gate.T, H @ up.T], -1), CTX).chunk(2, -1)
        hidden = F.silu(gate) * up
    else:
        hidden = canon(F.silu(H @ gate.T) * (H @ up.T), CTX)
    torch.testing.assert_close(ffn(H, CTX), hidden @ ffn.down_proj.weight.T, rtol=1e-5, atol=1e-6)
