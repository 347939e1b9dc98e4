"""Attention residuals: plain means at the start, a softmax over depth after it."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.attention_residuals import AttentionResiduals, DepthMean
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.plugin import Dims
from lit_small_lm.testing import check

DIMS = Dims(dim=16, n_layers=4, n_heads=2, n_kv_heads=2, head_dim=8, hidden=24)
TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(1))


def network(norm):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(norm=norm), DIMS, 31).double()


def read(net):
    """What every branch of a network reads and puts out, in order."""
    inputs, outputs = [], []
    for layer in net.layers:
        for branch in (layer.mixer, layer.ffn):
            branch.register_forward_hook(lambda _, args, out: inputs.append(args[0]) or outputs.append(out))
    ends = []
    net.close.register_forward_hook(lambda _, args, out: ends.append(out))
    net(TOKENS, Context(Visibility.rows(TOKENS)))
    return inputs, outputs, ends[0]


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_contracts(branches):
    check(AttentionResiduals(norm=LayerNorm(), branches_a_source=branches))


@torch.no_grad()
def test_at_the_start_every_branch_reads_the_mean_of_its_sources():
    net = network(AttentionResiduals())
    inputs, outputs, end = read(net)
    sources = [net.embed(TOKENS), *outputs]
    assert len(inputs) == 8
    for number, found in enumerate([*inputs, end], start=1):
        wanted = rms(torch.stack(sources[:number]).mean(0))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_branches_may_be_summed_into_fewer_sources():
    net = network(AttentionResiduals(branches_a_source=3))
    inputs, outputs, end = read(net)
    sources = [net.embed(TOKENS)]
    for number, out in enumerate(outputs):
        torch.testing.assert_close(inputs[number], rms(torch.stack(sources).mean(0)), rtol=1e-12, atol=1e-12)
        sources = [*sources, out] if number % 3 == 0 else [*sources[:-1], sources[-1] + out]
    assert len(sources) == 1 + 3  # 8 branches: three, three, two
    torch.testing.assert_close(end, rms(torch.stack(sources).mean(0)), rtol=1e-12, atol=1e-12)


def test_the_mean_is_weighted_by_a_softmax_over_depth():
    mean = DepthMean(RMSNorm().build(16), 16).double()
    with torch.no_grad():
        mean.query.normal_()
        mean.norm.weight.normal_()
    sources = torch.randn(5, 2, 3, 16, dtype=torch.float64)
    scores = torch.einsum("d,nbtd->nbt", mean.query, mean.norm(sources))
    wanted = torch.einsum("nbt,nbtd->btd", scores.softmax(0), sources)
    torch.testing.assert_close(mean(tuple(sources)), wanted, rtol=1e-12, atol=1e-12)


def test_queries_are_vectors_without_decay():
    queries = [p for p in network(AttentionResiduals()).named_roles() if p.name.endswith("query")]
    assert len(queries) == 2 * 4 + 1
    assert {(query.role, query.decay) for query in queries} == {("norm", 0)}
