"""LayerNorm Scaling and CompleteP folded into weights, and ProRes after its ramp: the same function under plain Pre-LN,
and a public class for it."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.hf.folding import folded
from lit_small_lm.hf.public import Unfit
from lit_small_lm.hf.registry import fitting
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.completep import CompletePNorm
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.pointwise_norms import Derf
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.nn.residual import LayerNormScaling, PreNorm
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.shapes import FixedShape

SHAPE = FixedShape(dim=16, n_layers=4, n_heads=2, hidden=24)
EXPERTS = MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=2), n_experts=3, expert_hidden=8, shared_hidden=8)
GPT = LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"))
SCALED = {
    "Llama": BackboneSpec(norm=LayerNormScaling()),
    "gains of one plus": BackboneSpec(norm=LayerNormScaling(norm=RMSNorm(gain="1+w"))),
    "after the branch": BackboneSpec(norm=LayerNormScaling(factor_on="branch")),
    "CompleteP": BackboneSpec(norm=CompletePNorm(base_dim=8, base_layers=1, alpha=0.7), canon_at="AC"),
    "CompleteP of experts": BackboneSpec(
        norm=CompletePNorm(norm=RMSNorm(gain="1+w"), base_dim=4), layer=LayerSpec(ffn=EXPERTS)
    ),
    "faded in": BackboneSpec(norm=ProRes(scheme=ProRes(scheme=LayerNormScaling(), steps=3))),
    "by branch": BackboneSpec(norm=LayerNormScaling(index="branch", power=0.25)),
    "in the gain": BackboneSpec(norm=LayerNormScaling(factor_on="gain")),
    "GPT-2": BackboneSpec(norm=LayerNormScaling(norm=LayerNorm()), layer=GPT, positions=Learned(length=16)),
    "GPT-2 by CompleteP": BackboneSpec(
        norm=CompletePNorm(norm=LayerNorm(), base_dim=8), layer=GPT, positions=Learned(length=16)
    ),
}


@pytest.fixture
def tokens():
    return torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))


def network(spec, dtype=torch.float64):
    torch.manual_seed(0)
    net = Backbone(spec, SHAPE.resolve(), 31).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("spec", SCALED.values(), ids=SCALED)
def test_same_function(spec, tokens):
    net = network(spec)
    plain, state = folded(spec, net.dims, net.state_dict())
    assert isinstance(plain.norm, PreNorm)
    twin = Backbone(plain, net.dims, 31).double().eval()
    twin.load_state_dict(state)
    wanted = net(tokens, Context(Visibility.rows(tokens)))
    torch.testing.assert_close(twin(tokens, Context(Visibility.rows(tokens))), wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_unfolded_weights_are_another_function(tokens):
    net = network(SCALED["Llama"])
    twin = Backbone(BackboneSpec(), net.dims, 31).double().eval()
    twin.load_state_dict(net.state_dict())
    outs = [n(tokens, Context(Visibility.rows(tokens))) for n in (net, twin)]
    assert (outs[0] - outs[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("Llama", "LlamaForCausalLM"), ("GPT-2", "GPT2LMHeadModel"), ("GPT-2 by CompleteP", "GPT2LMHeadModel")],
)
def test_a_public_class_fits_once_folded(name, architecture):
    spec = SCALED[name]
    with pytest.raises(Unfit, match=f"norm {type(spec.norm).__name__} is not PreNorm"):
        fitting(spec, SHAPE, 31)
    plain, _ = folded(spec, SHAPE.resolve(), network(spec).state_dict())
    assert fitting(plain, SHAPE, 31)[0].architecture == architecture


def test_other_schemes_pass_as_they_are():
    spec = BackboneSpec(norm=PeriNorm())
    state = {"a": torch.ones(1)}
    assert folded(spec, SHAPE.resolve(), state) == (spec, state)


@pytest.mark.parametrize(
    "scheme",
    [
        LayerNormScaling(norm=RMSNorm(gain="none")),
        CompletePNorm(norm=RMSNorm(gain="none")),
        LayerNormScaling(norm=Derf()),
    ],
    ids=lambda scheme: f"{type(scheme).__name__}, {type(scheme.norm).__name__}",
)
def test_what_is_no_gain_does_not_fold(scheme):
    spec = BackboneSpec(norm=scheme)
    with pytest.raises(Unfit, match=f"norm.norm {type(scheme.norm).__name__} has no gain"):
        folded(spec, SHAPE.resolve(), network(spec).state_dict())
