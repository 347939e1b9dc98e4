"""The explanation is of the network that runs: every parameter is in it, with its shape, whatever the parts are."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.positions import Learned, NoPositions
from lit_small_lm.nn.residual import LayerNormScaling
from lit_small_lm.nn.routers import SigmoidRouter
from lit_small_lm.planning.explain import explain
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import FFN, Canon, Dims, Mixer, Norm, NormScheme, Positions, known
from lit_small_lm.testing_network import SURROUNDINGS, kinds_of

DIMS = Dims(dim=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=4, hidden=24)
VOCAB = 40
FAMILIES = sorted((Path(__file__).parents[2] / "configs/families").glob("*.yaml"))


def explained(spec, dims=DIMS, kind="causal"):
    return explain(Outline(spec, dims, VOCAB), kind)


def mentions(text):
    """Every `name[shape]` of a text, lists of equal parameters spelt out."""
    for name, shape in re.findall(r"([\w.{}]*\w)\[([\d, ]+)\]", text):
        spread = re.search(r"\{(\d+)\.\.(\d+)\}", name)
        numbers = range(int(spread[1]), int(spread[2]) + 1) if spread else [None]
        for number in numbers:
            yield (name if number is None else re.sub(r"\{.*\}", str(number), name)), shape


def check(spec, dims=DIMS, kind="causal"):
    """Each parameter of each layer stands in that layer's block with its shape, and nothing else does."""
    text = explained(spec, dims, kind)
    blocks = dict(re.findall(r"^# (.*) \(kind: .*\)$\n((?:.+\n)+)", text, re.MULTILINE))
    seen = set()
    with torch.device("meta"):
        net = Backbone(spec, dims, VOCAB)
    for title, block in blocks.items():
        for low, high in re.findall(r"(\d+)(?: to (\d+))?", title):
            for index in range(int(low), int(high or low) + 1):
                seen.add(index)
                wanted = {(n, ", ".join(map(str, p.shape))) for n, p in net.layers[index].named_parameters()}
                buffers = {(n, ", ".join(map(str, b.shape))) for n, b in net.layers[index].named_buffers()}
                found = set(mentions(block))
                assert wanted <= found <= wanted | buffers, index
    assert seen == set(range(dims.n_layers))
    outside = {(n, ", ".join(map(str, p.shape))) for n, p in net.named_parameters() if not n.startswith("layers.")}
    assert outside <= set(mentions(text))
    assert "earlier" not in text
    return text


def family(file):
    discover()
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(file)]
    return BackboneSpec.from_dict(check_request(argv, roots()).tree["model"]["init_args"]["backbone"])


@pytest.mark.parametrize("file", FAMILIES, ids=lambda path: path.stem)
def test_every_family(file):
    spec = family(file)
    check(spec, Dims(32, len(spec.first) + len(spec.pattern) + 1, 4, 2, 8, 24))


PARTS = [
    (kind, cls)
    for kind in (NormScheme, Mixer, FFN, Canon, Norm, Positions)
    for cls in (discover(), known(kind))[1].values()
    if cls.__module__.startswith("lit_small_lm.")  # those of other test files are broken on purpose
    and cls.__name__ not in ("MoE", "ProRes")  # they need to be told what is inside
]


@pytest.mark.parametrize(("kind", "cls"), PARTS, ids=lambda value: value.__name__)
def test_every_known_part(kind, cls):
    spec = SURROUNDINGS[kind](cls())
    for visibility in kinds_of(spec):
        check(spec, kind=visibility)


def test_experts():
    moe = MoE(expert=GatedMLP(), router=SigmoidRouter(top_k=2), n_experts=5, shared_hidden=8)
    text = check(BackboneSpec(layer=LayerSpec(ffn=moe), canon_at="ABC"))
    assert "ffn.experts.{0..4}." in text and "ffn.router.bias[5]" in text


def test_the_page():
    """A small network as it is printed, line by line."""
    spec = BackboneSpec(norm=LayerNormScaling(), layer=LayerSpec(ffn=GatedMLP(activation="relu")), logit_softcap=30.0)
    lines = explained(spec).splitlines()
    assert lines[0] == "# 3 layers, causal; B rows of T positions, as in evaluation (no dropout)"
    assert lines[1].split() == "x = embedding(tokens, embed.weight[40, 16]) # (B, T, 16)".split()
    assert "# layer 0 (kind: layer)" in lines and "# each of layers 1 to 2 (kind: layer)" in lines
    text = re.sub(" +", " ", "\n".join(lines))
    for expected in (
        "# mixer_path PrePath: x + branch(factor * norm(x)); the factor is a constant of the layer, never a tensor",
        "qkv_proj = linear(mixer_path_norm, mixer.qkv_proj.weight[32, 16]) # (B, T, 32)",
        "h1 = mixer_path_norm * 0.707107 # (B, T, 16); in the last h1 = mixer_path_norm * 0.57735",
        "is_causal=True, enable_gqa=True) # (B, 4, T, 4)",
        "x_2 = x + o_proj # (B, T, 16)",
        "x_3 = x_2 + down_proj # (B, T, 16)\nreturn x_3",
        "# after the layers\nclose = rms_norm(x, (16,), weight=close.weight[16], eps=1e-06) # (B, T, 16)",
        "= relu(",
        "logits = h3 * 30.0 # (B, T, 40)",
    ):
        assert expected in text
    assert "dropout(" not in text


def test_kinds_of_layers():
    local, far = LayerSpec(mixer=Attention(window=4)), LayerSpec(mixer=Attention(qk_norm=RMSNorm()))
    spec = BackboneSpec(layer=local, more_layers={"global": far}, pattern=("layer", "layer", "global"))
    text = check(spec, Dims(16, 7, 4, 2, 4, 24))
    assert "# each of layers 0 to 1, 3 to 4, 6 (kind: layer)" in text
    assert "# each of layers 2, 5 (kind: global)" in text
    near, wide = (text[text.index(title) :] for title in ("(kind: layer)", "(kind: global)"))
    assert "mask(4)" in near and "mask(4)" not in wide and "mixer.q_norm.weight[4]" in wide


def test_bidirectional_attention_is_not_causal():
    text = explained(BackboneSpec(), kind="bidirectional")
    assert text.startswith("# 3 layers, bidirectional") and "is_causal=False" in text and "is_causal=True" not in text


def test_short_positions():
    """Rows are no longer than there are positions, and shapes stay readable."""
    text = check(BackboneSpec(positions=Learned(length=8)))
    assert "embed_positions.table.weight[8, 16]" in text and "(B, T, 16)" in text


@dataclass(frozen=True, kw_only=True)
class _Scan(Mixer):
    """A mixer from elsewhere: position by position, with a parameter of its own."""

    def build(self, site):
        return ScanMixer(site.dim)


class ScanMixer(nn.Module):
    """A running mean. More is not said."""

    def __init__(self, dim):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(dim))

    def reset_parameters(self):
        nn.init.ones_(self.rate)

    def forward(self, h, ctx):
        state, out = torch.zeros_like(h[:, 0]), []
        for t in range(h.shape[1]):
            state = state * self.rate + h[:, t]
            out.append(state)
        return torch.stack(out, dim=1)


@dataclass(frozen=True, kw_only=True)
class _Choice(FFN):
    """An FFN from elsewhere whose flow depends on the values."""

    def build(self, site):
        return ChoiceFFN(site.dim)


class ChoiceFFN(ScanMixer):
    """Doubles what is positive on the whole."""

    def forward(self, h, ctx):
        h = h * self.rate
        return 2 * h if h.sum().item() > 0 else h


@dataclass(frozen=True, kw_only=True)
class _Judging(NormScheme):
    """A scheme from elsewhere whose flow depends on the values."""

    def build(self, site):
        return JudgingPath()

    def close(self, dim):
        return nn.Identity()


class JudgingPath(nn.Module):
    """x + branch(x), if that is positive on the whole."""

    def forward(self, x, branch):
        y = x + branch(x)
        return y if y.sum().item() > 0 else x


def test_a_loop_of_an_unknown_mixer_is_cut_short():
    text = check(BackboneSpec(layer=LayerSpec(mixer=_Scan(), positions=NoPositions())))
    assert "# mixer  ScanMixer: A running mean\n" in text
    assert re.search(r"# and \d+ more lines, of __getitem__, add, mul, stack", text)
    assert len(text.splitlines()) < 400


def test_a_part_that_needs_data_is_said_to():
    text = check(BackboneSpec(layer=LayerSpec(ffn=_Choice())))
    flat = re.sub(r"\s+#?\s*", " ", text)
    assert "ffn ChoiceFFN: Doubles what is positive on the whole; from here it does not run without data: " in flat
    assert re.search(r" h\d+ = ffn\(ffn_path_norm, ffn\.rate\[16\]\) \(B, T, 16\)", flat)


def test_a_scheme_that_needs_data_is_an_error():
    with pytest.raises(RequestError, match="mixer_path .JudgingPath. does not run without data"):
        explained(BackboneSpec(norm=_Judging()))
