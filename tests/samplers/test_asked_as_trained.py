"""While decoding a network is asked what it was asked in training: the same logits, block by block from memory."""

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.plugin import Batch, Specials
from lit_small_lm.samplers.asking import CachedBlocks, PlainBlocks, WholeCanvas
from lit_small_lm.samplers.canvas import SamplingCanvas
from lit_small_lm.shapes import FixedShape

SPECIALS = Specials(vocab_size=20, end=0, pad=1, mask=2)
DIMS = FixedShape(dim=16, n_layers=2, n_heads=2, hidden=24).resolve()
FAMILIES = {
    "canon": BackboneSpec(canon_at="ABCD"),
    "convolutions": BackboneSpec(
        layer=LayerSpec(mixer=ShortConv()),
        more_layers={"attention": LayerSpec(canon_at="BD")},
        pattern=("layer", "attention"),
    ),
}


def network(family):
    torch.manual_seed(0)
    net = Backbone(FAMILIES[family], DIMS, 20).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def batch(length=19):
    tokens = torch.randint(3, 20, (2, length + 1), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = SPECIALS.end
    rows = torch.arange(2)
    return Batch(tokens, torch.zeros_like(tokens), None, rows, rows, SPECIALS)


@torch.no_grad()
def trained_and_decoded(objective, family, asker):
    """Logits of every masked token: in the one pass of training, and block by block as samplers ask."""
    net, query = network(family), objective.query(batch(), (0, 1))
    doubled, asked = query.visibility.kind == "doubled", objective.decoding()
    noisy, clean = query.tokens.chunk(2, 1) if doubled else (query.tokens, None)
    masked = noisy == SPECIALS.mask
    in_training = torch.zeros(*noisy.shape, 20, dtype=torch.float64)
    in_training[masked] = net(query.tokens, query.context(), scored=query.scored)[-int(masked.sum()) :]
    canvas, found = SamplingCanvas(noisy, 0, SPECIALS, asked.block_size), torch.zeros_like(in_training)
    ask = asker(net, canvas, asked)
    for columns in canvas.blocks():
        open = canvas.open_in(columns)
        found[open] = ask.logits(open, columns)
        canvas.fill(open, open[open].long() if clean is None else clean[open])
    assert masked.sum() > 10
    return in_training, found


@pytest.mark.parametrize("asker", [CachedBlocks, PlainBlocks])
@pytest.mark.parametrize("at", ["own", "before"])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("kind", [BlockDiffusion, JointDiffusion])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks(family, kind, size, at, asker):
    wanted, found = trained_and_decoded(kind(block_size=size, logits_at=at), family, asker)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at", ["own", "before"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_canvas(family, at):
    wanted, found = trained_and_decoded(MaskedDiffusion(logits_at=at), family, WholeCanvas)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_joint_network_sees_finished_text_causally():
    """Decoded as if it saw it in blocks, its logits are others."""
    objective = JointDiffusion(block_size=5)
    wanted, found = trained_and_decoded(objective, "canon", CachedBlocks)
    _, in_blocks = trained_and_decoded(BlockDiffusion(block_size=5), "canon", CachedBlocks)
    assert (found - wanted).abs().max() < 1e-9 < (in_blocks - wanted).abs().max()
