"""Dropout of attention weights, embeddings and branch outputs: where it acts, and that it is a function of the seed."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention import Attention, plain_attention
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.positions import Learned
from lit_small_lm.plugin import Dims, Site

DIMS = Dims(dim=16, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=4, hidden=8)
TOKENS = torch.arange(22).view(2, 11)


def network(**spec):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(**spec), DIMS, 31)


def nll(net, seed=1):
    torch.manual_seed(seed)
    return net(TOKENS, Context(Visibility.rows(TOKENS)), TOKENS)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_attention_weights_are_dropped_as_in_the_plain_twin(packed):
    torch.manual_seed(0)
    mixer = Attention(attention_dropout=0.4).build(Site(DIMS, 0, "mixer")).double().train()
    h = torch.randn(2, 11, 16, dtype=torch.float64, requires_grad=True)
    docs = torch.tensor([[0] * 3 + [1] * 7 + [2], [5] * 6 + [6] * 5]) if packed else None
    view = Visibility.rows(TOKENS, docs)
    probe, inputs = torch.randn(2, 11, 16, dtype=torch.float64), [h, *mixer.parameters()]
    torch.manual_seed(3)
    fast = mixer(h, Context(view))
    torch.manual_seed(3)
    plain = plain_attention(*mixer.heads(mixer.qkv_proj(h)), view.dense(), dropout=0.4)
    plain = mixer.o_proj(plain.transpose(1, 2).flatten(2))
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad((plain * probe).sum(), inputs)
    found = torch.autograd.grad((fast * probe).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 6, 4, dtype=torch.float64)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    draws = torch.stack([plain_attention(q, k, v, mask, dropout=0.3) for _ in range(4000)])
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - plain_attention(q, k, v, mask)).abs() < 5 * error).all()


SPECS = {
    "embedding": {"embedding_dropout": 0.3, "positions": Learned(length=11)},
    "attention weights": {"layer": LayerSpec(mixer=Attention(attention_dropout=0.3))},
    "mixer": {"layer": LayerSpec(mixer=Attention(dropout=0.3))},
    "FFN": {"layer": LayerSpec(ffn=GatedMLP(dropout=0.3))},
}


@pytest.mark.parametrize("place", SPECS)
def test_dropout_acts_in_training_only_and_follows_the_seed(place):
    net, plain = network(**SPECS[place]), network(positions=SPECS[place].get("positions", BackboneSpec().positions))
    assert torch.equal(nll(net, 1), nll(net, 1))
    assert not torch.equal(nll(net, 1), nll(net, 2))
    assert torch.equal(nll(net.eval()), nll(plain))


def test_the_embedding_is_dropped_behind_its_positions():
    net, seen = network(embedding_dropout=0.5, positions=Learned(length=11)), []
    net.open.register_forward_hook(lambda module, args, x: seen.append(x))
    nll(net)
    nll(net.eval())
    zero, (dropped, whole) = seen[0] == 0, seen
    assert 0.4 < zero.float().mean() < 0.6
    torch.testing.assert_close(dropped[~zero], 2 * whole[~zero])
