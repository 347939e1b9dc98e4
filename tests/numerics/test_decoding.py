"""Decoding with a cache gives the logits of the full pass, however the row is cut.

Weights are large, in float64, so that a lost neighbour or key would show at the first digit.
"""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.positions import Learned, NoPositions
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.shapes import FixedShape

DIMS = FixedShape(dim=16, n_layers=3, n_heads=4, n_kv_heads=2, hidden=24).resolve()
CONV = LayerSpec(mixer=ShortConv(), canon_at="ABCD")
FAMILIES = {
    "Llama": BackboneSpec(),
    "Canon ABCD": BackboneSpec(norm=LayerNormScaling(), layer=LayerSpec(canon_at="ABCD")),
    "wide Canon": BackboneSpec(layer=LayerSpec(canon_at="ABCD", canon=CausalCanon(kernel=6), ffn=MLP())),
    "only convolutions": BackboneSpec(layer=CONV, positions=NoPositions()),
    "hybrid": BackboneSpec(more_layers={"conv": CONV}, pattern=("conv", "conv", "layer")),
    "window": BackboneSpec(layer=LayerSpec(mixer=Attention(window=3), canon_at="AC")),
    "learned": BackboneSpec(norm=PostNorm(), positions=Learned(length=14)),
}


def network(spec):
    torch.manual_seed(0)
    net = Backbone(spec, DIMS, 31).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def decode(net, tokens, sizes, capacity=None):
    cache, pieces = Cache(capacity or tokens.shape[1]), []
    for piece in tokens.split(sizes, dim=1):
        pieces.append(net(piece, Context(Visibility.rows(piece, start=cache.length), cache)))
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("sizes", [[1] * 14, [14], [9, 1, 1, 1, 1, 1], [2, 5, 1, 3, 3], [1, 13]], ids=str)
@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_any_cut_of_the_row_gives_the_logits_of_the_full_pass(spec, sizes):
    net = network(spec)
    tokens = torch.randint(31, (2, 14), generator=torch.Generator().manual_seed(1))
    wanted = net(tokens, Context(Visibility.rows(tokens)))
    torch.testing.assert_close(decode(net, tokens, sizes), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_larger_cache_changes_nothing():
    net, tokens = network(FAMILIES["hybrid"]), torch.randint(31, (1, 8))
    torch.testing.assert_close(decode(net, tokens, [3, 5], 50), decode(net, tokens, [3, 5]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_more_positions_than_the_cache_holds_are_refused():
    net, tokens = network(FAMILIES["Llama"]), torch.randint(31, (1, 8))
    with pytest.raises(RequestError, match="8 positions asked for; it was made for 7"):
        decode(net, tokens, [6, 2], capacity=7)
