"""GPAS: values shrink, gradients do not, and one gate serves both branches of a layer."""

import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.gpas import GPAS, shrunk
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=3, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))


def network(norm):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(norm=norm), DIMS, 31)


def losses(net):
    return net(TOKENS, Context(Visibility.rows(TOKENS)), TOKENS)


def test_contracts():
    check(GPAS(norm=LayerNorm()))


def test_closed_gates_are_pre_norm_gradients_included():
    gated, pre = network(GPAS()), network(PreNorm())
    assert torch.equal(losses(gated), losses(pre))
    for net in (gated, pre):
        losses(net).mean().backward()
    assert torch.equal(gated.embed.weight.grad, pre.embed.weight.grad)


def test_values_shrink_by_silu_of_the_gate_and_the_gradient_passes_whole():
    x = torch.randn(2, 5, 16, requires_grad=True)
    share = torch.tensor([0.25], requires_grad=True)
    found = shrunk(x, share)
    torch.testing.assert_close(found, 0.75 * x)
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    torch.testing.assert_close(share.grad, -x.detach().sum().reshape(1))


def test_both_branches_of_a_layer_share_its_gate():
    layer = network(GPAS()).layers[1]
    with torch.no_grad():
        layer.mixer_path.gate.fill_(2.0)
    share, x = torch.nn.functional.silu(torch.tensor(2.0)), torch.randn(2, 5, 16)
    carry = layer.mixer_path(x, torch.zeros_like)
    torch.testing.assert_close(layer.ffn_path(carry, torch.zeros_like), x * (1 - share) ** 2)
    assert [name for name, _ in layer.named_parameters() if "gate" in name and "proj" not in name] == [
        "mixer_path.gate"
    ]


def test_gates_are_not_decayed():
    gates = [p for p in network(GPAS()).named_roles() if p.name.endswith(".gate")]
    assert len(gates) == 3
    assert {(gate.role, gate.decay) for gate in gates} == {("norm", 0)}
