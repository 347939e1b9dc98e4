"""The report, its page and its figures."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lit_small_lm.analysis import plots
from lit_small_lm.analysis.catalogue import ANALYSES, AnalysisSettings, analysed, chosen, rounded
from lit_small_lm.analysis.depth import effective, participation
from lit_small_lm.analysis.page import page
from lit_small_lm.analysis.report import lines, report
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.checkpoint import LanguageModel
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.objectives.next_token import NextToken

TEXT = {"split": "validation", "rows": 4, "row_length": 24, "rows_in_split": 4}
NAME = 'a <b>"run"</b> & more'


@pytest.fixture
def make_report(make_subject):
    """`make_report(spec)`: all analyses of a tiny network."""

    def make(spec=BackboneSpec(), names=tuple(ANALYSES), layers=3, **settings):
        subject = make_subject(spec, layers)
        model = LanguageModel(subject.net, NextToken(), None, {"step": 7})
        results = analysed(subject, AnalysisSettings(**settings), names, lambda name, done, of: None)
        return report(model, NAME, subject, AnalysisSettings(), results, TEXT)

    return make


def images(found):
    wanted = {name: result for name, result in found["results"].items() if "unmeasured" not in result}
    return {
        name: {theme: plots.drawn(name, result, theme) for theme in plots.THEMES} for name, result in wanted.items()
    }


@pytest.mark.slow
def test_the_report_is_json_and_the_same_twice(make_report):
    first, second = json.dumps(make_report(), allow_nan=False), json.dumps(make_report(), allow_nan=False)
    assert first == second
    assert set(json.loads(first)["results"]) == set(ANALYSES)


class Reader(HTMLParser):
    """Collects what a page refers to and says."""

    def __init__(self):
        super().__init__()
        self.references, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
def test_the_page_needs_nothing_else(make_report):
    found = make_report()
    text = page(found, images(found))
    assert text == page(found, images(found))
    reader = Reader()
    reader.feed(text)
    inner, figures = ([one for one in reader.references if (one[0] == "#") == here] for here in (True, False))
    assert inner == [f"#{name}" for name in ANALYSES] and len(figures) == 2 * len(ANALYSES)
    assert all(reference.startswith("data:image/png;base64,") for reference in figures)
    assert all(f'id="{name}"' in text for name in ANALYSES)
    assert not {"script", "link", "iframe", "b", "object"} & set(reader.tags)
    assert not re.search(r"@import|url\(|https?://", text)
    assert NAME in "".join(reader.text) and "<b>" not in text
    assert f"{found['loss']['value']:.4f} ± " in text and "NextToken" in text and "12 documents" in text
    assert 'name="viewport"' in text and "prefers-color-scheme" in text
    for about in ANALYSES.values():
        assert about.title in "".join(reader.text)


@pytest.mark.slow
def test_tables_say_it_all_without_figures(make_report):
    found = make_report()
    text = page(found, {})
    assert "<img" not in text and text.count("<details open>") == len(ANALYSES)
    rise, off = found["results"]["removal"]["rise"][1], found["results"]["removal"]["rise_error"][1]
    assert f"{rise:.3g} ± {off:.2g}" in text
    assert f">{found['results']['swap']['rise'][0][2]:.3g}</td>" in text


def test_what_could_not_be_measured_says_why(make_report):
    found = make_report(BackboneSpec(norm=AttentionResiduals()), ("jacobian", "gradient"))
    assert set(found["results"]["jacobian"]) == {"unmeasured"}
    assert "Not measured: the norm scheme carries several tensors" in page(found, images(found))
    assert any("jacobian: not measured: " in line for line in lines(found))


@pytest.mark.slow
@pytest.mark.parametrize("theme", plots.THEMES)
def test_every_figure_opens(make_report, theme):
    names = ("removal", "angular", "profile", "outliers", "swap", "causal", "greedy")
    results = make_report(names=names)["results"]
    for name, result in {**results, "angular_rescaled": results["angular"]}.items():
        data = plots.drawn(name, result, theme)
        assert data == plots.drawn(name, result, theme)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            colours = image.convert("L").getextrema()
            assert image.format == "PNG" and image.width > 500 and colours[1] - colours[0] > 100, name


@pytest.mark.slow
def test_figures_of_one_layer_and_of_numbers_that_are_not_finite(make_report):
    results = make_report(layers=1)["results"]
    for name in results:
        assert images({"results": {name: results[name]}})
    bad = rounded({"rise": [float("nan"), 1.0, float("inf")], "rise_error": [float("nan"), 0.1, 0.2]})
    assert bad["rise"] == [None, 1.0, None]
    plots.drawn("removal", bad, "light")
    plots.drawn("removal", {"rise": [None], "rise_error": [None]}, "light")
    plots.drawn("greedy", {"layers": [0], "rise": [None], "rise_error": [None]}, "light")


def test_what_a_scale_would_hide_is_shown_again():
    """Beside one large bar, and below a threshold far above all bars."""
    count = plots.PLOTS["usefulness"].panels
    flat = {"rise": [0.01, 0.02, None], "rise_error": [0.001, 0.001, 0.1], "threshold": 0.5}
    assert count(flat) == 2 and count({**flat, "rise": [0.2, 0.3, None]}) == 1
    assert count({**flat, "rise": [1.0, 0.1, 0.0]}) == 2 and count({"rise": [None], "threshold": 0.5}) == 1
    figure = Figure()
    axes = figure.subplots(2)
    plots.PLOTS["usefulness"].draw(flat, *axes)
    assert axes[0].get_ylim()[1] > 0.5 and 0.02 < axes[1].get_ylim()[1] < 0.03


def test_rows_of_tables_say_what_they_are(make_report):
    """Greedy removal counts steps, even where they are as many as layers."""
    text = page(make_report(names=("profile", "removal", "greedy"), layers=2, greedy=2), {})
    parts = {part.split('"')[1]: part for part in text.split("<h2 id=")[1:]}
    found = {name: re.findall("<table><tr><th>([a-z ]+)</th>", part) for name, part in parts.items()}
    assert found == {"profile": ["layer", "layers run"], "removal": ["layer"], "greedy": ["step"]}


def test_effective_depths_by_hand():
    results = {
        "removal": {"rise": [1.0, 0.0, -0.5, 1.0]},
        "greedy": {"rise": [0.001, 0.015, 0.5]},
        "usefulness": {"share": 0.5},
        "lens": {"loss": [9.0, 3.0, 2.1, 2.05, 2.0]},
    }
    assert [one.layers for one in effective(results, 2.0, 4)] == [2, 2.0, 2, 2.0, 2]
    assert effective({"removal": {"unmeasured": "no"}}, 2.0, 4) == []
    assert participation([0.3] * 5) == pytest.approx(5) and participation([7.0, 0.0]) == 1
    assert participation([-1.0, 0.0]) == 0


def test_names_of_analyses():
    assert chosen(None, None) == list(ANALYSES)
    assert chosen("lens, removal", None) == ["removal", "lens"]
    assert "swap" not in chosen(None, "swap")
    with pytest.raises(RequestError, match="--only: 'remuval' is not a known analysis.*did you mean removal"):
        chosen("remuval", None)
    with pytest.raises(RequestError, match="--skip: '' is not"):
        chosen(None, "")
    with pytest.raises(RequestError, match="leaves nothing"):
        chosen("lens", "lens")
