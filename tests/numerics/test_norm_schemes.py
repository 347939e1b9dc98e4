"""Every norm scheme under what training does to a network: one compiled graph, layers that are run again, and a
checkpoint that is read back."""

import runpy
from pathlib import Path

import pytest
import torch

from lit_small_lm.analysis.pruning import content
from lit_small_lm.backbone import Backbone
from lit_small_lm.checkpoint import LanguageModel, load, make_record, write
from lit_small_lm.context import Context, Visibility
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.discovery import discover
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Dims, NormScheme, known
from lit_small_lm.shapes import fixed

shared = runpy.run_path(str(Path(__file__).parents[1] / "norm_schemes.py"))
SCHEMES, FAMILIES = shared["SCHEMES"], shared["FAMILIES"]
DIMS = Dims(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))


def step(net, kind="causal"):
    """Losses of one batch in the seventh step of training, and the gradients of their mean."""
    net.zero_grad()
    ctx = Context(Visibility.rows(TOKENS, kind=kind), step=torch.tensor(7))
    nll = net(TOKENS, ctx, TOKENS.roll(-1, 1))
    nll.mean().backward()
    return nll.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}


def network(family, vocab_size=31):
    torch.manual_seed(0)
    net = Backbone(family, DIMS, vocab_size).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def agree(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)  # float64; kernels may be fused or reordered


def test_no_scheme_is_forgotten():
    discover()
    tried = {type(spec) for spec in SCHEMES.values()}
    shipped = {cls for cls in known(NormScheme).values() if cls.__module__.startswith("lit_small_lm.")}
    assert shipped == tried


@pytest.mark.slow  # all of them: near a minute
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_compiled_in_one_graph_it_is_the_same_network(family):
    torch.compiler.reset()
    net = network(family)
    nll, gradients = step(net)
    net.compile(fullgraph=True, backend="aot_eager")
    compiled, compiled_gradients = step(net)
    torch.compiler.reset()
    agree(compiled, nll)
    agree(compiled_gradients, gradients)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_layers_run_again_give_the_same_gradients(family):
    net = network(family)
    nll, gradients = step(net, kind="bidirectional")
    for layer in net.layers:
        layer.activation_checkpointing = "layers"
    again, again_gradients = step(net, kind="bidirectional")
    assert torch.equal(again, nll)
    agree(again_gradients, gradients)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_checkpoint_is_read_back(family, tmp_path):
    """To a network that is asked as one that was never saved, whatever it was while training."""
    encoder, file = Bytes().learn(iter([])), tmp_path / "step.ckpt"
    net = network(family, encoder.specials.vocab_size).float().eval()
    parts = {"backbone": family, "shape": fixed(DIMS), "objective": NextToken(), "tokenizer": Bytes()}
    model = LanguageModel(net, NextToken(), encoder, make_record(**parts, encoder=encoder, step=3))
    write(content(model, "2.6"), file)
    found = load(file)
    assert found.net.spec == family
    assert torch.equal(found.logits(TOKENS), model.logits(TOKENS))
