"""Parallel residuals: both branches of a layer read the stream that entered it."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.parallel_norm import ParallelNorm
from lit_small_lm.plugin import Site
from lit_small_lm.shapes import FixedShape
from lit_small_lm.testing import check

DIMS = FixedShape(dim=16, n_layers=3, n_heads=2, hidden=24).resolve()


@pytest.mark.parametrize("norm", [RMSNorm(), LayerNorm()], ids=["RMSNorm", "LayerNorm"])
def test_contracts(norm):
    check(ParallelNorm(norm=norm))


def test_both_branches_read_what_entered_the_layer():
    scheme, x = ParallelNorm(norm=RMSNorm()), torch.randn(2, 5, 16)
    mixer, ffn = (scheme.build(Site(DIMS, 0, place=place)) for place in ("mixer", "ffn"))
    read = []
    carry = mixer(scheme.open(16)(x), lambda h: read.append(h) or 2 * x)
    carry = ffn(carry, lambda h: read.append(h) or 3 * x)
    assert torch.equal(read[0], read[1])
    torch.testing.assert_close(carry[0], 6 * x)
    assert carry[0] is carry[1]  # the next layer reads the sum


def test_the_whole_network_by_hand():
    torch.manual_seed(0)
    net = Backbone(BackboneSpec(norm=ParallelNorm()), DIMS, 31).double().eval()
    tokens = torch.randint(31, (2, 9))
    x = net.embed(tokens)
    for layer in net.layers:
        ctx = Context(Visibility.rows(tokens))
        x = x + layer.mixer(layer.mixer_path.norm(x), ctx) + layer.ffn(layer.ffn_path.norm(x), ctx)
    wanted = net.close.norm(x) @ net.embed.weight.T
    torch.testing.assert_close(net(tokens, Context(Visibility.rows(tokens))), wanted, rtol=1e-10, atol=1e-12)
