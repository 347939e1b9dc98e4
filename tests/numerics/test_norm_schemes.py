"""Every norm scheme under what training does to a network: one compiled graph, and layers that are run again."""

import pytest
import torch
from lit_small_lm.plugins.admin import Admin
from lit_small_lm.plugins.layer_scale import LayerScale
from lit_small_lm.plugins.sandwich_norm import SandwichNorm
from lit_small_lm.plugins.skip_init import ReZero, SkipInit

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.completep import CompletePNorm
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.gpas import GPAS
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.pointwise_norms import Derf, DyT
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.reordered_norm import ReorderedNorm
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm
from lit_small_lm.plugin import Dims, NormScheme, known

DIMS = Dims(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
SCHEMES = [
    PreNorm(norm=DyT()),
    PostNorm(),
    LayerNormScaling(norm=Derf()),
    LayerNormScaling(factor_on="gain", index="branch"),
    LayerNormScaling(factor_on="branch"),
    PeriNorm(),
    ReorderedNorm(),
    ParallelNorm(),
    DeepNorm(),
    MixNorm(share=0.5),
    ProRes(scheme=PreNorm(), steps=10),
    GPAS(),
    AttentionResiduals(),
    AttentionResiduals(branches_a_source=3),
    CompletePNorm(base_dim=8, base_layers=1),
    LayerScale(),
    SkipInit(),
    ReZero(start=0.5),
    SandwichNorm(),
    Admin(),
]


def step(net, kind="causal"):
    """Losses of one batch in the seventh step of training, and the gradients of their mean."""
    net.zero_grad()
    ctx = Context(Visibility.rows(TOKENS, kind=kind), step=torch.tensor(7))
    nll = net(TOKENS, ctx, TOKENS.roll(-1, 1))
    nll.mean().backward()
    return nll.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def network(spec):
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(norm=spec), DIMS, 31).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def agree(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)  # float64; kernels may be fused or reordered


def test_no_scheme_is_forgotten():
    tried = {type(spec) for spec in SCHEMES}
    shipped = {cls for cls in known(NormScheme).values() if cls.__module__.startswith("lit_small_lm.")}
    assert shipped == tried


@pytest.mark.slow  # all of them: near a minute
@pytest.mark.parametrize("spec", SCHEMES, ids=lambda spec: repr(spec)[:60])
def test_compiled_in_one_graph_it_is_the_same_network(spec):
    torch.compiler.reset()
    net = network(spec)
    nll, gradients = step(net)
    net.compile(fullgraph=True, backend="aot_eager")
    compiled, compiled_gradients = step(net)
    torch.compiler.reset()
    agree(compiled, nll)
    agree(compiled_gradients, gradients)


@pytest.mark.parametrize("spec", SCHEMES, ids=lambda spec: repr(spec)[:60])
def test_layers_run_again_give_the_same_gradients(spec):
    net = network(spec)
    nll, gradients = step(net, kind="bidirectional")
    for layer in net.layers:
        layer.activation_checkpointing = "layers"
    again, again_gradients = step(net, kind="bidirectional")
    assert torch.equal(again, nll)
    agree(again_gradients, gradients)
