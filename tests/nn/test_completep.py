"""CompleteP: the table of its paper, and that the first steps move a network of any size alike."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.completep import CompletePInit, CompletePNorm
from lit_small_lm.nn.init import NormalInit
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check
from lit_small_lm.training.optim import AdamW

HIDDEN = ("qkv", "out", "gate_up", "up", "down")


def dims_of(dim, n_layers):
    return Dims(dim=dim, n_layers=n_layers, n_heads=dim // 16, n_kv_heads=dim // 16, head_dim=16, hidden=3 * dim)


def test_contracts():
    check(CompletePInit(base_dim=8, base_layers=1))
    check(CompletePNorm(base_dim=8, base_layers=1, alpha=0.5))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_table(alpha):
    init, wide = CompletePInit(std_dev=0.1, base_dim=16, base_layers=2, alpha=alpha), dims_of(64, 18)
    deeper = 9 ** (alpha - 1)  # four times as wide, nine times as deep
    for role in HIDDEN:
        assert init.std(role, wide) == pytest.approx(0.1 / 2)
        assert init.lr_scale(role, wide) == pytest.approx(deeper / 4)
        assert init.decays(role, wide) == pytest.approx(4)
        assert init.eps_scale(role, wide) == pytest.approx(9**-alpha / 4)
    for role in ("embedding", "positions", "head"):
        assert (init.std(role, wide), init.lr_scale(role, wide), init.eps_scale(role, wide)) == (0.1, 1.0, 1 / 4)
    for role in ("norm", "bias", "convolution"):
        assert init.lr_scale(role, wide) == pytest.approx(deeper)
        assert init.eps_scale(role, wide) == pytest.approx(9**-alpha / 4)
    assert [init.decays(role, wide) for role in ("embedding", "norm", "bias", "head", "convolution")] == [0, 0, 0, 1, 1]


def test_the_small_network_is_pre_norm_with_a_normal_init():
    small, found = dims_of(32, 2), []
    scheme, init = CompletePNorm(base_dim=32, base_layers=2), CompletePInit(base_dim=32, base_layers=2)
    for spec in (BackboneSpec(norm=scheme, init=init), BackboneSpec(norm=PreNorm(), init=NormalInit())):
        torch.manual_seed(0)
        tokens = torch.randint(31, (2, 9))
        found.append(Backbone(spec, small, 31)(tokens, Context(Visibility.rows(tokens))))
    assert torch.equal(*found)


def test_branches_and_logits_are_divided():
    net = Backbone(BackboneSpec(norm=CompletePNorm(base_dim=16, base_layers=2)), dims_of(64, 6), 31)
    x, path = torch.randn(2, 5, 64), net.layers[3].ffn_path
    torch.testing.assert_close(path(x, torch.cos), x + torch.cos(path.norm(x)) / 3)
    torch.testing.assert_close(net.close(x), net.close.norm(x) / 4)


SMALL = dims_of(32, 2)
LARGER = {"wider": dims_of(128, 2), "deeper": dims_of(32, 8), "both": dims_of(128, 8)}
COMPLETE = BackboneSpec(
    norm=CompletePNorm(base_dim=32, base_layers=2), init=CompletePInit(base_dim=32, base_layers=2), head="untied"
)
TOKENS = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(1))


def network(spec, dims):
    torch.manual_seed(0)
    return Backbone(spec, dims, 64)


def states(net):
    """The logits, and the stream after the last layer."""
    found = []
    handle = net.layers[-1].register_forward_hook(lambda module, args, x: found.append(x.detach()))
    logits = net(TOKENS, Context(Visibility.rows(TOKENS))).detach()
    handle.remove()
    return logits, *found


def backward(net):
    net.zero_grad()
    net(TOKENS, Context(Visibility.rows(TOKENS)), TOKENS.roll(-1, 1)).mean().backward()


def moved(spec, dims, eps=1e-8, **changes):
    """Root mean squares of the changes of `states` in four steps of Adam, on one batch of random tokens."""
    net = network(spec, dims)
    parameters = [parameter._replace(**changes) for parameter in net.named_roles()]
    optimizer, before = AdamW(lr=0.01, eps=eps).build(parameters, fused=False), states(net)
    for _ in range(4):
        backward(net)
        optimizer.step()
    return [(new - old).square().mean().sqrt().item() for old, new in zip(before, states(net), strict=True)]


def test_a_step_moves_wide_and_deep_networks_as_it_moves_the_small_one():
    """Under the usual parameterisation the same rate moves the logits of the large network several times as far."""
    usual = BackboneSpec(head="untied")
    ratio, usual_ratio = (moved(spec, LARGER["both"])[0] / moved(spec, SMALL)[0] for spec in (COMPLETE, usual))
    assert 0.5 < ratio < 2
    assert usual_ratio > 3


@pytest.mark.parametrize("size", LARGER)
def test_eps_shrinks_as_gradients_do(size):
    """Role by role, to a fifth: gradients of random weights scatter. The final norm is no branch's."""
    sums = []
    for dims in (SMALL, LARGER[size]):
        net, found = network(COMPLETE, dims), {}
        backward(net)
        for parameter in (p for p in net.named_roles() if not p.name.startswith("close")):
            found.setdefault(parameter.role, []).append(parameter.tensor.grad.square().mean().sqrt().item())
        sums.append({role: sum(sizes) / len(sizes) for role, sizes in found.items()})
    init = COMPLETE.init
    wanted = {role: init.eps_scale(role, LARGER[size]) for role in sums[0]}
    assert {role: sums[1][role] / sums[0][role] for role in wanted} == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("size", LARGER)
def test_an_eps_as_large_as_gradients_changes_nothing_of_that(size):
    """The coordinate check, where eps counts: with the same one for all sizes, large networks hardly move."""
    small = moved(COMPLETE, SMALL, eps=0.01)
    for found, wanted in zip(moved(COMPLETE, LARGER[size], eps=0.01), small, strict=True):
        assert found == pytest.approx(wanted, rel=0.25)
    assert moved(COMPLETE, LARGER["both"], eps=0.01, eps_scale=1.0)[1] < 0.6 * small[1]
