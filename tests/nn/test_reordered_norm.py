"""OLMo 2's order: the norm stands after the branch."""

import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.reordered_norm import ReorderedNorm
from lit_small_lm.plugin import Site
from lit_small_lm.shapes import FixedShape
from lit_small_lm.testing import check

DIMS = FixedShape(dim=16, n_layers=2, n_heads=2, hidden=24).resolve()


def test_contracts():
    check(ReorderedNorm())
    check(ReorderedNorm(norm=LayerNorm()))


def test_the_branch_reads_the_stream_and_its_output_is_normed():
    x, weight = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(16, 16, dtype=torch.float64)
    path, seen = ReorderedNorm(norm=RMSNorm(eps=1e-30)).build(Site(DIMS, 0, place="ffn")).double(), []
    with torch.no_grad():
        path.norm.weight.fill_(0.25)
    found = path(x, lambda h: seen.append(h) or h @ weight)
    h = x @ weight
    wanted = x + 0.25 * h / h.square().mean(-1, keepdim=True).sqrt()
    assert seen[0] is x
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_end_is_normed():
    x = 7 * torch.randn(2, 5, 16)
    out = Backbone(BackboneSpec(norm=ReorderedNorm()), DIMS, 31).close(x)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, 5), rtol=1e-4, atol=0)
