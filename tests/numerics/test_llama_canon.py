"""LLaMA3-Canon against Llama: with zero Canon weights the same bit for bit, with others decoded as it is scored.

The Llama that it is held against is `transformers.LlamaForCausalLM` (test_family_parity.py); Canon's own formula is
tested in tests/nn/test_canon.py.
"""

import dataclasses

import pytest
import torch

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.hf.names import to_ours, to_theirs
from lit_small_lm.hf.registry import FAMILIES, read_model
from lit_small_lm.roles import parameter_role

CONFIG = {
    "model_type": "dhara", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 40, "rms_norm_eps": 1e-5,
}  # fmt: skip
PLACES = ["A", "AC", "ABC", "ABCD"]
SPANS = ["gate_up", "hidden"]


def with_canon(letters, span="gate_up", dtype=torch.float32):
    """A network with Canon layers at these places, over what Canon D is said to span."""
    model = read_model({**CONFIG, "canon_set": letters})
    layer = model.backbone.layer
    layer = dataclasses.replace(layer, ffn=dataclasses.replace(layer.ffn, canon_span=span))
    torch.manual_seed(0)
    net = Backbone(dataclasses.replace(model.backbone, layer=layer), model.shape.resolve(), 61).to(dtype).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def canon_weights(net):
    return {
        name
        for prefix, module in net.named_modules()
        for name, tensor in module.named_parameters(prefix, recurse=False)
        if parameter_role(module, name, tensor) == "convolution"
    }


@pytest.fixture
def rows():
    """Rows of 17 tokens: of one document each, and of three packed ones with padding behind."""
    tokens = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 5 + [1] * 9 + [2] * 3, [3] * 12 + [-1] * 5])
    return tokens, documents


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("letters", PLACES)
def test_zero_canon_weights_are_llama_bit_for_bit(letters, span, kind, rows):
    net = with_canon(letters, span)
    added = canon_weights(net)
    assert len(added) == 3 * len(letters)
    for name in added:
        net.get_parameter(name).zero_()
    llama = with_canon("")
    llama.load_state_dict({name: tensor for name, tensor in net.state_dict().items() if name not in added})
    tokens, documents = rows
    for doc_ids in (None, documents):
        outs = [n(tokens, Context(Visibility.rows(tokens, doc_ids, kind))) for n in (net, llama)]
        assert torch.equal(*outs)
    net.get_parameter(sorted(added)[0]).fill_(0.01)
    assert not torch.equal(net(tokens, Context(Visibility.rows(tokens, documents, kind))), outs[1])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 17, [5, 1, 7, 4], [2, 15]], ids=str)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("letters", PLACES)
def test_cached_decoding_is_the_full_pass(letters, span, sizes, rows):
    net, (tokens, _) = with_canon(letters, span, torch.float64), rows
    wanted = net(tokens, Context(Visibility.rows(tokens)))
    cache, pieces = Cache(17), []
    for piece in tokens.split(sizes, dim=1):
        pieces.append(net(piece, Context(Visibility.rows(piece, start=cache.length), cache)))
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-11, atol=1e-11)
    without_memory = torch.cat([net(p, Context(Visibility.rows(p))) for p in tokens.split(sizes, dim=1)], 1)
    assert (without_memory - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("changes", [{}, {"canon_set": "AC"}, {"canon_set": "ABCD", "qk_norm": True}])
def test_names_there_and_back(changes):
    """Canon B lies over queries, keys and values one after another in the files, head by head in ours."""
    model = read_model({**CONFIG, **changes})
    net = Backbone(model.backbone, model.shape.resolve(), 61)
    entries = FAMILIES["dhara"].names(model)
    theirs = to_theirs(entries, net.state_dict())
    again = to_ours(entries, theirs)
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())
    letters = changes.get("canon_set", "")
    assert sum("canon" in name for name in theirs) == 3 * len(letters)
    if "B" in letters:
        files = theirs["model.layers.0.self_attn.canonB.weight"]
        ours = again["layers.0.mixer.canon.sum.weight"]
        assert files.shape == (4 * 8 + 2 * 2 * 8, 1, 4)
        assert torch.equal(
            files[4 * 8, 0].flip(0), ours[2 * 8]
        )  # the first key stands behind the two queries of its group


def test_written_and_read_again():
    model = read_model({**CONFIG, "canon_set": "ABCD", "qk_norm": True, "mask_token_id": 7})
    assert read_model(FAMILIES["dhara"].write(model)) == model
