"""Mix-LN: Pre-LN at one end, Post-LN at the other, and the layers where it changes between them."""

import pytest
import torch
from torch import nn

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.mix_norm import MixNorm
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.residual import PostNorm, PreNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check


def network(norm, n_layers=4):
    torch.manual_seed(0)
    dims = Dims(dim=16, n_layers=n_layers, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)
    return Backbone(BackboneSpec(norm=norm), dims, 31)


def logits(net):
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))
    return net(tokens, Context(Visibility.rows(tokens)))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_contracts(share):
    check(MixNorm(share=share))


@pytest.mark.parametrize("norm", [RMSNorm(), LayerNorm()], ids=["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize(("share", "other"), [(0.0, PreNorm), (1.0, PostNorm)])
def test_a_share_of_none_is_pre_norm_and_of_all_is_post_norm(share, other, norm):
    assert torch.equal(logits(network(MixNorm(share=share, norm=norm))), logits(network(other(norm=norm))))


def test_a_share_between_is_neither():
    found = logits(network(MixNorm(share=0.5)))
    for other in (PreNorm(), PostNorm()):
        assert not torch.allclose(found, logits(network(other)), rtol=1e-3)


@pytest.mark.parametrize(
    ("share", "n_layers", "post"),
    [(0.25, 12, 3), (0.25, 24, 6), (0.25, 5, 2), (0.0625, 32, 2), (0.07, 100, 7), (1e-3, 4, 1)],
)
def test_the_first_layers_are_post_norm_rounded_up(share, n_layers, post):
    kinds = [
        isinstance(layer.mixer_path.before, nn.Identity) for layer in network(MixNorm(share=share), n_layers).layers
    ]
    assert kinds == [True] * post + [False] * (n_layers - post)
