"""Canon layers: where they stand, how many weights they add, and that weights of zero add nothing."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.neighbours import NeighbourSum, gathered
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import Site
from lit_small_lm.shapes import FixedShape

PAPER = FixedShape(dim=384, n_layers=32, n_heads=8, n_kv_heads=4, hidden=1024)
TINY = FixedShape(dim=16, n_layers=2, n_heads=2, hidden=24)


def on_meta(canon_at, shape=PAPER, **layer):
    with torch.device("meta"):
        return Backbone(BackboneSpec(layer=LayerSpec(canon_at=canon_at, **layer)), shape.resolve(), 50304)


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("letters", "added"),
    [("", 0), ("A", 49_152), ("AC", 98_304), ("B", 32 * 4 * 768), ("D", 32 * 4 * 2048), ("ABCD", 458_752)],
)
def test_weights_added_at_32_layers_of_dim_384(letters, added):
    assert size(on_meta(letters)) - size(on_meta("")) == added


def test_weights_of_the_70m_llama_with_canon_ac():
    assert size(on_meta("AC")) == 71_344_512


def test_canon_d_of_a_plain_mlp_spans_the_hidden_width():
    assert size(on_meta("D", ffn=MLP())) - size(on_meta("", ffn=MLP())) == 32 * 4 * 1024


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("mixer", [Attention(), ShortConv()], ids=["attention", "convolution"])
def test_weights_of_zero_change_nothing(mixer, packed):
    nets = []
    for letters in ("ABCD", ""):
        spec = BackboneSpec(layer=LayerSpec(canon_at=letters, mixer=mixer))
        nets.append(Backbone(spec, TINY.resolve(), 31))
    with_canon, without = nets
    shared = {name: tensor for name, tensor in with_canon.state_dict().items() if "canon" not in name}
    without.load_state_dict(shared)
    for name, parameter in with_canon.named_parameters():
        if "canon" in name:
            torch.nn.init.zeros_(parameter)
    tokens = torch.randint(31, (2, 9))
    view = Visibility.rows(tokens, torch.tensor([[0] * 4 + [1] * 5, [2] * 9]) if packed else None)
    assert torch.equal(with_canon(tokens, Context(view)), without(tokens, Context(view)))


def test_canon_is_the_input_plus_the_neighbour_sum():
    torch.manual_seed(0)
    module = CausalCanon(kernel=3).build(Site(TINY.resolve(), 0, "canon_A"), 5)
    h = torch.randn(2, 6, 5)
    view = Visibility.rows(h[..., 0], torch.tensor([[0, 0, 0, 1, 1, 1], [2] * 6]))
    wanted = h + gathered(h, module.sum.weight, view)
    torch.testing.assert_close(module(h, Context(view)), wanted)


def test_each_canon_layer_has_its_own_decoding_memory():
    net = on_meta("ABCD", TINY, mixer=ShortConv())
    addresses = [module.address for module in net.modules() if isinstance(module, NeighbourSum)]
    assert len(addresses) == 2 * 5
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("letters", ["E", "AA", "a", "A B"])
def test_other_letters_are_refused(letters):
    with pytest.raises(RequestError, match="canon_at: .* allowed: letters of ABCD"):
        Backbone(BackboneSpec(layer=LayerSpec(canon_at=letters)), TINY.resolve(), 31)
