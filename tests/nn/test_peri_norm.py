"""Peri-LN: both norms of a branch, the stream they leave alone, the growth they allow."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.peri_norm import PeriNorm
from lit_small_lm.plugin import Site
from lit_small_lm.shapes import FixedShape
from lit_small_lm.testing import check

DIMS = FixedShape(dim=16, n_layers=4, n_heads=2, hidden=24).resolve()


def rms(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    "spec", [PeriNorm(), PeriNorm(norm=LayerNorm(), embedding_norm=RMSNorm())], ids=["plain", "embedding"]
)
def test_contracts(spec):
    check(spec)


def test_a_branch_is_normed_before_and_after():
    x, weight = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(16, 16, dtype=torch.float64)
    path = PeriNorm(norm=RMSNorm(eps=1e-30)).build(Site(DIMS, 0, place="mixer")).double()
    with torch.no_grad():
        path.before.weight.fill_(3.0)
        path.after.weight.fill_(0.5)
    found = path(x, lambda h: h.square() @ weight)
    torch.testing.assert_close(found, x + 0.5 * rms((3 * rms(x)).square() @ weight), rtol=1e-12, atol=1e-12)


def test_the_stream_grows_by_a_constant_a_branch_whatever_the_branch_puts_out():
    path, x = PeriNorm().build(Site(DIMS, 0, place="mixer")), torch.zeros(1, 3, 16)
    added = path(x, lambda h: 1000 * torch.randn(1, 3, 16)) - x
    torch.testing.assert_close(added.square().mean(-1), torch.ones(1, 3), rtol=1e-4, atol=0)


def test_the_embedding_is_normed_if_asked_and_the_end_always():
    x = 7 * torch.randn(2, 5, 16)
    plain, normed = (Backbone(BackboneSpec(norm=s), DIMS, 31) for s in (PeriNorm(), PeriNorm(embedding_norm=RMSNorm())))
    assert plain.open(x) is x
    torch.testing.assert_close(normed.open(x), rms(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.close(x), rms(x), rtol=1e-5, atol=1e-6)
    tokens = torch.randint(31, (2, 9))
    assert torch.isfinite(normed(tokens, Context(Visibility.rows(tokens)))).all()
