"""Operations: golden figures, and PyTorch's counter on real networks with plain attention and loops of experts."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention import Attention, plain_attention
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.moe import MoEFFN
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.flops import ROWS, flops
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.question import ask
from lit_small_lm.plugin import Dims

FAMILIES = sorted((Path(__file__).parents[2] / "configs" / "families").glob("*.yaml"))
VOCAB, TIME = 31, 12
GPT2 = BackboneSpec(
    norm=PreNorm(norm=LayerNorm(shift="none")),
    layer=LayerSpec(mixer=Attention(), ffn=MLP()),
    positions=Learned(length=1024),
)
GPT2_DIMS = Dims(dim=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, hidden=3072)


def operations(spec, dims, vocab, positions, objective=NextToken()):
    outline = Outline(spec, dims, vocab)
    return flops(outline, parameters(outline), positions, objective)


def family(file):
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(file)]
    return BackboneSpec.from_dict(check_request(argv, roots()).tree["model"]["init_args"]["backbone"])


def tiny(spec):
    kinds = spec.first + spec.pattern
    depth = max(kinds.index(name) for name in kinds) + 1
    return Dims(dim=16, n_layers=max(2, depth), n_heads=4, n_kv_heads=2, head_dim=8, hidden=24)


def plainly(q, k, v, mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Attention as the counter knows it on a CPU."""
    seen = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool)
    return plain_attention(q, k, v, (seen.tril() if is_causal else seen) if mask is None else mask, scale=scale)


@pytest.fixture
def counted(monkeypatch):
    """Operations of a forward pass, and of a forward and a backward pass, over one row of a real network."""

    def count(spec, dims):
        net, tokens = Backbone(spec, dims, VOCAB), torch.randint(VOCAB, (1, TIME))
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", plainly)
            patch.setattr(MoEFFN, "groups", lambda self, rows: False)
            with FlopCounterMode(display=False) as forward:
                logits = net(tokens, Context(Visibility.rows(tokens)))
            with FlopCounterMode(display=False) as backward:
                logits.square().sum().backward()
        return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()

    return count


def test_gpt2_without_biases():
    """nanoGPT's transformer_sizing.ipynb: a row of 1,024 positions, forward and both passes, and PaLM's formula."""
    found = operations(GPT2, GPT2_DIMS, 50_257, 1024)
    assert found.forward_per_token * 1024 == 291_648_307_200
    assert found.training_per_token * 1024 == 874_944_921_600
    assert found.palm_per_token * 1024 == 875_062_886_400


@pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
def test_every_family_takes_what_is_counted(file, counted):
    spec = family(file)
    dims = tiny(spec)
    found, (forward, both) = operations(spec, dims, VOCAB, TIME), counted(spec, dims)
    assert found.forward_per_token * TIME == forward
    every_pair = (dims.dim - 1) * found.convolution_per_token  # so the counter takes a depthwise kernel's gradient
    assert (found.training_per_token + every_pair) * TIME == both


@pytest.mark.parametrize("letters", ["AC", "ABCD"])
def test_canon_layers_are_convolutions(letters, counted):
    spec = BackboneSpec(canon_at=letters)
    dims = tiny(spec)
    found = operations(spec, dims, VOCAB, TIME)
    assert found.convolution_per_token == 2 * parameters(Outline(spec, dims, VOCAB)).components["canon"]
    assert found.forward_per_token * TIME == counted(spec, dims)[0]


def test_a_window_counts_the_keys_that_it_has():
    narrow = BackboneSpec(layer=LayerSpec(mixer=Attention(window=5)))
    mixed = BackboneSpec(layer=narrow.layer, more_layers={"wide": LayerSpec()}, pattern=("layer", "wide"))
    dims = Dims(dim=16, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=8, hidden=24)
    each = 4 * 4 * 8  # scores and values, heads, channels
    assert operations(BackboneSpec(), dims, VOCAB, 20).attention_per_token == 4 * each * 20
    assert operations(narrow, dims, VOCAB, 20).attention_per_token == 4 * each * 5
    assert operations(mixed, dims, VOCAB, 20).attention_per_token == 2 * each * 5 + 2 * each * 20
    assert operations(narrow, dims, VOCAB, 3).attention_per_token == 4 * each * 3
    assert (
        operations(narrow, dims, VOCAB, 20).palm_per_token == operations(BackboneSpec(), dims, VOCAB, 20).palm_per_token
    )


def test_a_head_is_multiplied_once_tied_or_not():
    dims = tiny(BackboneSpec())
    tied, untied = (operations(BackboneSpec(head=head), dims, VOCAB, TIME) for head in ("tied", "untied"))
    assert dataclasses.asdict(tied) == dataclasses.asdict(untied)


def test_next_tokens_are_read_and_scored_once():
    found = operations(BackboneSpec(), tiny(BackboneSpec()), VOCAB, TIME)
    assert (found.read_per_token, found.scored_per_token) == (1, 1)
    assert found.training_per_token == 3 * found.forward_per_token


def test_masked_positions_alone_go_through_the_head():
    """Half of them on average; a row has one position more, the first token of its document."""
    dims = tiny(BackboneSpec())
    found = operations(BackboneSpec(), dims, VOCAB, 50, MaskedDiffusion())
    plain = operations(BackboneSpec(), dims, VOCAB, 50)
    assert found.read_per_token == 51 / 50 and abs(found.scored_per_token - 0.5) < 0.05
    head = 2 * VOCAB * dims.dim
    assert found.forward_per_token == plain.forward_per_token
    inside = plain.forward_per_token - head + plain.attention_per_token / 50  # one key more
    assert found.training_per_token == pytest.approx(3 * (51 / 50 * inside + found.scored_per_token * head), abs=2)


def test_block_diffusion_reads_a_row_twice():
    dims = tiny(BackboneSpec())
    found = operations(BackboneSpec(), dims, VOCAB, 50, BlockDiffusion(block_size=5))
    assert found.read_per_token == 2 * 51 / 50
    assert (
        found.training_per_token
        > 1.9 * operations(BackboneSpec(), dims, VOCAB, 50, MaskedDiffusion()).training_per_token
    )


@pytest.mark.parametrize(
    "objective", [NextToken(), MaskedDiffusion(), BlockDiffusion(block_size=5)], ids=lambda o: type(o).__name__
)
def test_a_training_step_takes_what_is_counted(objective, monkeypatch):
    """Of a real network, on the rows that the share of scored positions was taken over."""
    spec = BackboneSpec()
    dims, query = tiny(spec), ask(objective, ROWS, TIME, VOCAB)
    found = operations(spec, dims, VOCAB, TIME, objective)
    net = Backbone(spec, dims, VOCAB)
    monkeypatch.setattr(F, "scaled_dot_product_attention", plainly)
    with FlopCounterMode(display=False) as counter:
        net(query.tokens, query.context(), query.targets, query.scored).sum().backward()
    assert counter.get_total_flops() == pytest.approx(found.training_per_token * ROWS * TIME, abs=ROWS * TIME / 2)
