"""The gated short convolution against its formula, documents and all."""

import torch

from lit_small_lm.context import Context, Visibility
from lit_small_lm.nn.neighbours import gathered
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.plugin import Dims, Site

SITE = Site(Dims(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, hidden=8), 0, "mixer")


def test_equals_its_formula():
    torch.manual_seed(0)
    mixer = ShortConv(kernel=3).build(SITE).double()
    h = torch.randn(2, 7, 8, dtype=torch.float64)
    for docs in (None, torch.tensor([[0, 0, 1, 1, 1, 1, 2], [3] * 7])):
        view = Visibility.rows(h[..., 0], docs)
        b, c, x = mixer.in_proj(h).chunk(3, -1)
        wanted = mixer.o_proj(c * gathered(b * x, mixer.sum.weight, view))
        torch.testing.assert_close(mixer(h, Context(view)), wanted, rtol=1e-10, atol=1e-12)


def test_reaches_kernel_positions_to_the_left():
    mixer = ShortConv(kernel=3).build(SITE)
    h = torch.randn(1, 9, 8, requires_grad=True)
    out = mixer(h, Context(Visibility.rows(h[..., 0])))
    reach = torch.autograd.grad(out[0, 6].sum(), h)[0][0].abs().sum(-1) > 0
    assert reach.nonzero().flatten().tolist() == [4, 5, 6]
