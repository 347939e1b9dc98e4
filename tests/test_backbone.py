"""The backbone: patterns, heads, scored positions, parameter roles, and what it refuses."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention, AttentionMixer
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.init import NormalInit
from lit_small_lm.nn.mlp import MLP, GatedMLP
from lit_small_lm.nn.positions import Learned, NoPositions, Rotary
from lit_small_lm.nn.shortconv import ShortConv, ShortConvMixer
from lit_small_lm.shapes import FixedShape

DIMS = FixedShape(dim=16, n_layers=4, n_heads=2, hidden=24).resolve()
TOKENS = torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(0))
CONTEXT = Context(Visibility.rows(TOKENS))


def network(**spec):
    torch.manual_seed(0)
    return Backbone(BackboneSpec(**spec), DIMS, 31)


def context():
    return Context(Visibility.rows(TOKENS))


# ------------------------------------------------------------------------------------------------------------- patterns
def test_a_pattern_tiles_to_depth():
    spec = {"more_layers": {"conv": LayerSpec(mixer=ShortConv())}, "pattern": ("conv", "conv", "layer")}
    mixers = [type(layer.mixer) for layer in network(**spec).layers]
    assert mixers == [ShortConvMixer, ShortConvMixer, AttentionMixer, ShortConvMixer]


def test_the_first_layers_come_before_the_pattern():
    spec = BackboneSpec(
        more_layers={"conv": LayerSpec(mixer=ShortConv()), "plain": LayerSpec(ffn=MLP())},
        first=("plain", "plain"),
        pattern=("conv", "layer"),
    )
    wanted = [spec.more_layers["plain"]] * 2 + [spec.more_layers["conv"], spec.layer, spec.more_layers["conv"]]
    assert spec.layers(5) == [filled(kind, spec) for kind in wanted]
    assert spec.layers(1) == spec.layers(5)[:1]


def filled(kind, spec):
    """A kind of layer with what it leaves to the backbone."""
    return dataclasses.replace(kind, positions=spec.positions, canon_at=spec.canon_at)


def test_a_kind_of_layer_takes_the_canon_letters_of_the_backbone_unless_it_names_its_own():
    kinds = {"plain": LayerSpec(ffn=MLP(), canon_at=""), "own": LayerSpec(canon_at="BD")}
    spec = BackboneSpec(canon_at="AC", more_layers=kinds, pattern=("layer", "plain", "own"))
    assert [kind.canon_at for kind in spec.layers(3)] == ["AC", "", "BD"]
    names = [name.split(".", 2)[1:] for name, _ in network(**vars(spec)).named_parameters() if "canon" in name]
    assert {layer for layer, _ in names} == {"0", "2", "3"}  # the pattern begins again


def test_the_embedding_is_scaled_by_the_root_of_its_width():
    plain, scaled = network(), network(embedding_scale="sqrt_dim")
    with torch.no_grad():
        plain.embed.weight.mul_(4)  # the root of 16
    torch.testing.assert_close(scaled(TOKENS, context()) * 4, plain(TOKENS, context()), rtol=1e-5, atol=1e-6)


def test_a_soft_cap_acts_on_logits_and_loss_alike():
    net = network(logit_softcap=0.01, init=NormalInit(std_dev=0.5))
    logits = net(TOKENS, context())
    assert logits.abs().max() <= 0.01
    wanted = F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten(), reduction="none").view(TOKENS.shape)
    torch.testing.assert_close(net(TOKENS, context(), TOKENS), wanted)


def test_an_unknown_kind_of_layer_is_refused():
    with pytest.raises(RequestError, match="'cnv' is not a known kind of layer; known: conv, layer; did you mean conv"):
        network(more_layers={"conv": LayerSpec()}, pattern=("cnv",))


def test_an_empty_pattern_is_refused():
    with pytest.raises(RequestError, match="at least one kind of layer"):
        network(pattern=())


def test_positions_of_a_layer_override_those_of_the_backbone():
    still = LayerSpec(positions=NoPositions())
    layers = network(more_layers={"still": still}, pattern=("layer", "still"), positions=Rotary(base=7.0)).layers
    assert [layer.mixer.rotate and layer.mixer.rotate.base for layer in layers] == [7.0, None, 7.0, None]


# ---------------------------------------------------------------------------------------------------- answers and head
def test_losses_are_those_of_the_logits():
    net, targets = network(), TOKENS.roll(-1, 1)
    wanted = F.cross_entropy(net(TOKENS, context()).flatten(0, 1), targets.flatten(), reduction="none").view(2, 7)
    torch.testing.assert_close(net(TOKENS, context(), targets), wanted)


def test_scored_positions_are_a_selection_of_all():
    net, scored, targets = network(), torch.tensor([1, 12, 5]), torch.tensor([3, 0, 30])
    logits = net(TOKENS, context()).flatten(0, 1)[scored]
    torch.testing.assert_close(net(TOKENS, context(), scored=scored), logits)
    nll = net(TOKENS, context(), targets, scored)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"))


def test_tied_and_untied_heads():
    tied, untied = network(), network(head="untied")
    assert "head.weight" not in tied.state_dict()
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    untied.load_state_dict({**tied.state_dict(), "head.weight": tied.embed.weight})
    assert torch.equal(untied(TOKENS, context()), tied(TOKENS, context()))


def test_rows_of_one_document_take_the_fast_path_to_the_same_answer():
    net = network(layer=LayerSpec(canon_at="ABCD")).double()
    packed = Context(Visibility.rows(TOKENS, torch.tensor([[4] * 7, [9] * 7])))
    torch.testing.assert_close(net(TOKENS, packed), net(TOKENS, context()), rtol=1e-10, atol=1e-12)


def test_learned_positions_change_the_answer_by_document():
    net = network(positions=Learned(length=7))
    swapped = Context(Visibility(CONTEXT.visibility.positions.flip(1)))
    assert not torch.allclose(net(TOKENS, swapped), net(TOKENS, context()))


def test_limit():
    assert network().limit() is None
    assert network(positions=Learned(length=9)).limit() == 9


# ------------------------------------------------------------------------------------------------------------- weights
def test_one_seed_one_network():
    first, second = network().state_dict(), network().state_dict()
    torch.manual_seed(1)
    third = Backbone(BackboneSpec(), DIMS, 31).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed.weight"], third["embed.weight"])


def test_every_parameter_has_a_role():
    net = network(
        layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias"), canon_at="AC"),
        more_layers={"gated": LayerSpec(ffn=GatedMLP())},
        pattern=("layer", "gated"),
        positions=Learned(length=7),
        head="untied",
    )
    found = {p.name.replace("layers.0.", "").replace("layers.1.", ""): (p.role, p.decay) for p in net.named_roles()}
    wanted = {
        "embed.weight": ("embedding", False),
        "embed_positions.table.weight": ("positions", False),
        "mixer_path.norm.weight": ("norm", False),
        "canon_a.sum.weight": ("convolution", True),
        "mixer.qkv_proj.weight": ("qkv", True),
        "mixer.qkv_proj.bias": ("bias", False),
        "mixer.o_proj.weight": ("out", True),
        "ffn.up_proj.weight": ("up", True),
        "ffn.gate_up_proj.weight": ("gate_up", True),
        "ffn.down_proj.weight": ("down", True),
        "close.weight": ("norm", False),
        "head.weight": ("head", True),
    }
    assert {name: found[name] for name in wanted} == wanted
    assert [p.name for p in net.named_roles()] == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize("vocab_size", [31, 1000])
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_number_of_weights(vocab_size, head):
    """Embedding, per layer q, k, v, o of dim x dim, three of dim x hidden and two norms, the final norm, the head."""
    net = Backbone(BackboneSpec(head=head), DIMS, vocab_size)
    layers = 4 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16)
    heads = 2 if head == "untied" else 1
    assert sum(p.numel() for p in net.parameters()) == heads * vocab_size * 16 + layers + 16


# ------------------------------------------------------------------------------------------------------------- refusals
class Claimless(torch.nn.Module):
    def forward(self, h, ctx):
        return h


def test_a_canon_letter_without_a_place_is_refused(monkeypatch):
    monkeypatch.setattr(GatedMLP, "build", lambda self, site: Claimless())
    with pytest.raises(RequestError, match="canon_at: D has no place in a layer of Attention with GatedMLP"):
        network(layer=LayerSpec(canon_at="AD"))


@pytest.mark.parametrize(
    ("part", "spec"),
    [
        (Attention, BackboneSpec()),
        (ShortConv, BackboneSpec(more_layers={"conv": LayerSpec(mixer=ShortConv())}, pattern=("layer", "conv"))),
        (CausalCanon, BackboneSpec(layer=LayerSpec(canon_at="A"))),
    ],
    ids=["mixer", "further layer", "canon"],
)
def test_a_kind_that_a_part_does_not_honour_is_refused(monkeypatch, part, spec):
    spec.refuse_kind("bidirectional")
    monkeypatch.setattr(part, "kinds", ("causal",))
    spec.refuse_kind("causal")
    with pytest.raises(
        RequestError,
        match=rf"^backbone\.\S+: {part.__name__} does not go with a bidirectional objective; it honours: causal",
    ):
        spec.refuse_kind("bidirectional")


def test_a_canon_layer_that_is_not_used_refuses_nothing(monkeypatch):
    monkeypatch.setattr(CausalCanon, "kinds", ("causal",))
    BackboneSpec().refuse_kind("bidirectional")
