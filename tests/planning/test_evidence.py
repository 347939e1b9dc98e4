"""The evidence on depth and width: its numbers, and that every piece has its source and doubt."""

import math

import pytest

from lit_small_lm.backbone import BackboneSpec, LayerSpec, size_of
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.planning import evidence
from lit_small_lm.planning.evidence import STUDY, of, place
from lit_small_lm.plugin import Dims

GPT2 = BackboneSpec(
    norm=PreNorm(norm=LayerNorm()),
    layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
    positions=Learned(length=1024),
)


def dims(dim, n_layers, heads=4):
    return Dims(dim, n_layers, heads, heads, dim // heads, 4 * dim)


@pytest.mark.parametrize("shape", STUDY, ids=lambda shape: shape.name)
def test_totals_of_the_study(shape):
    assert size_of(GPT2, dims(shape.dim, shape.n_layers), 50257).total == shape.total


def test_the_study_is_not_of_one_size():
    totals = [shape.total for shape in STUDY]
    assert max(totals) / min(totals) == pytest.approx(1.241, abs=1e-3)


def test_over_six_tasks_no_tiers_remain():
    """The gap between the tiers is five times what is left once the scores are means of the same tasks."""
    low, high = ([s.score for s in STUDY if s.tier == tier] for tier in ("low", "high"))
    assert min(high) - max(low) > 5
    rescaled = [shape.of_six_tasks for shape in STUDY]
    assert max(rescaled) - min(rescaled) < 1.5


@pytest.mark.parametrize(
    ("n_layers", "width"), [(12, 300), (16, 375), (24, 585), (32, 911), (48, 2215), (64, 5383), (95, 30_077)]
)
def test_levine_width(n_layers, width):
    assert round(evidence.levine_width(n_layers)) == pytest.approx(width, abs=1)


@pytest.mark.parametrize(
    ("dim", "n_layers", "ratio"),
    [(768, 12, 2.56), (1024, 28, 1.40), (640, 18, 1.53), (576, 30, 0.71), (384, 32, 0.42), (320, 48, 0.14)],
)
def test_levine_ratio(dim, n_layers, ratio):
    assert place(dims(dim, n_layers)).levine_ratio == pytest.approx(ratio, abs=0.01)


def test_placement():
    found = place(dims(384, 32))
    assert (found.ratio, found.alike.name, found.nearest.name) == (12, "Dhara-70M", "32 x 384")
    assert place(dims(512, 12)).critical_depth == 16
    assert place(dims(1024, 14)).nearest.name == "12 x 512"
    assert place(dims(768, 12)).alike.ratio == 64


def test_distance_is_by_factors():
    shape = STUDY[0]
    assert shape.distance(dims(768, 4)) == 0
    assert shape.distance(dims(1536, 4)) == shape.distance(dims(384, 4)) == pytest.approx(math.log(2))


def test_statements():
    said = of(dims(384, 32))
    assert "decides nothing" in said[0].text
    assert all(statement.source and statement.doubt for statement in said[1:])
    text = "\n".join(map(str, said))
    for expected in (
        "nearest is 32 x 384",
        "38.50 %, tier high",
        "61,603,136 to 76,475,520",
        "one seed",
        "0.42 of the 911",
    ):
        assert expected in text
    for source in ("2001.08361", "2006.12467", "2402.14905", "2310.19956", "2109.10686", "2601.20994", "nanochat"):
        assert source in text
    assert "deeper than this fit favours" in text and "32 layers lie beyond 14" in text


def test_statements_depend_on_the_shape():
    shallow, deep = ("\n".join(map(str, of(dims(*pair)))) for pair in ((768, 12), (256, 64)))
    assert "shallower than this fit favours" in shallow and "lie below" in shallow
    assert "deeper than this fit favours" in deep and "nearest is 64 x 256" in deep
