"""ProRes: the ramp over steps and layers, under any scheme, and the network it ends with."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Branch, Context, Visibility
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm
from lit_small_lm.plugin import Dims, Site
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=3, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
INNER = [PreNorm(), PostNorm(), LayerNormScaling(), DeepNorm(), ParallelNorm()]


def network(norm):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(norm=norm), DIMS, 31)


def at(step):
    step = None if step is None else torch.tensor(step)
    return Context(Visibility.rows(TOKENS), step=step)


@pytest.mark.parametrize("inner", INNER, ids=lambda spec: type(spec).__name__)
def test_contracts(inner):
    check(ProRes(scheme=inner))


@pytest.mark.parametrize("inner", INNER, ids=lambda spec: type(spec).__name__)
def test_after_the_ramp_and_outside_training_it_is_the_inner_scheme(inner):
    ramped, plain = network(ProRes(scheme=inner, steps=10)), network(inner)
    wanted = plain(TOKENS, at(None))
    for step in (None, 30, 31, 10**6):
        assert torch.equal(ramped(TOKENS, at(step)), wanted), step
    assert not torch.allclose(ramped(TOKENS, at(29)), wanted, rtol=1e-6, atol=1e-7)


def test_at_the_first_step_every_branch_is_silent():
    ramped = network(ProRes(scheme=PreNorm()))
    x = ramped.embed(TOKENS)
    torch.testing.assert_close(ramped(TOKENS, at(0)), ramped.close(x) @ ramped.embed.weight.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "step", "share"), [(0, 5, 0.5), (0, 20, 1.0), (1, 5, 0.25), (2, 15, 0.5), (2, 30, 1.0)]
)
def test_the_share_is_the_step_over_the_layer_number(layer, step, share):
    path = ProRes(scheme=PreNorm(), steps=10).build(Site(DIMS, layer, place="mixer"))
    x = torch.randn(2, 5, 16)
    found = path(x, Branch(torch.cos, at(step))) - x
    torch.testing.assert_close(found, share * torch.cos(path.path.norm(x)), rtol=1e-5, atol=1e-5)


def test_it_declares_how_long_the_ramp_is():
    assert ProRes(scheme=PreNorm(), steps=10).ramp(3) == 30
    assert PreNorm().ramp(3) == 0


def test_the_inner_schemes_weights_start_as_it_says():
    for mine, theirs in zip(
        network(ProRes(scheme=DeepNorm())).parameters(), network(DeepNorm()).parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_a_compiled_network_follows_the_steps_without_compiling_again():
    torch.compiler.reset()
    net = network(ProRes(scheme=PreNorm(), steps=10)).double()
    wanted = [net(TOKENS, at(step), TOKENS).mean().item() for step in (1, 7, 40)]
    net.compile(fullgraph=True, backend="aot_eager")
    found = [net(TOKENS, at(1), TOKENS).mean().item()]
    with torch.compiler.set_stance("fail_on_recompile"):
        found += [net(TOKENS, at(step), TOKENS).mean().item() for step in (7, 40)]
    torch.compiler.reset()
    assert found == pytest.approx(wanted, rel=1e-10)
    assert len(set(wanted)) == 3
