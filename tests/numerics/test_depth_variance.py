"""Variance of the residual stream over depth at the start, the quantity norm schemes differ in (arXiv 2502.05795).

The expected ratios of last to first layer are those of a network of 12 layers, dim 768, SwiGLU, every weight from
N(0, 0.02). They were measured on other code and other tokens, hence the 10 %.
"""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.deep_norm import DeepNorm
from lit_small_lm.nn.init import ScaledInit
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm
from lit_small_lm.plugin import Dims

DIMS = Dims(dim=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, hidden=2048)


@torch.no_grad()
def variances(spec: BackboneSpec) -> list[float]:
    """Mean over tokens of the variance over channels, after each layer."""
    with torch.device("meta"):
        net = Backbone(spec, DIMS, vocab_size=1024)
    net.to_empty(device="cpu")
    torch.manual_seed(0)
    net.init_weights()
    found = []
    for layer in net.layers:
        layer.register_forward_hook(lambda module, args, x: found.append(x.var(-1, unbiased=False).mean().item()))
    tokens = torch.randint(1024, (2, 64), generator=torch.Generator().manual_seed(1))
    net(tokens, Context(Visibility.rows(tokens)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "ratio"),
    [
        (BackboneSpec(), 33),
        (BackboneSpec(init=ScaledInit()), 23),
        (BackboneSpec(norm=LayerNormScaling()), 5.6),
        (BackboneSpec(norm=LayerNormScaling(factor_on="gain")), 5.6),
        (BackboneSpec(norm=LayerNormScaling(), init=ScaledInit()), 3.5),
        (BackboneSpec(norm=PeriNorm()), 12),
        (BackboneSpec(norm=PostNorm()), 1.0),
        (BackboneSpec(norm=DeepNorm()), 1.0),
    ],
    ids=["PreNorm", "ScaledInit", "LNS", "LNS as gain", "LNS and ScaledInit", "PeriNorm", "PostNorm", "DeepNorm"],
)
def test_growth_of_variance_over_depth(spec, ratio):
    found = variances(spec)
    assert len(found) == 12
    assert found[-1] / found[0] == pytest.approx(ratio, rel=0.1)
