"""Mixtures: named sources, their weights and their errors; the arithmetic of shares is tested with the plan."""

import pytest

from lit_small_lm.data.mixture import Mixture, Weighted, naming
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.testing import check


@pytest.fixture
def folders(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} says {number}")
    return {name: TextFiles(path=str(tmp_path / name)) for name in "abc"}


def test_weights_are_shares_and_nested_mixtures_flatten(folders):
    inner = Mixture(sources={"b": Weighted(source=folders["b"], weight=3), "c": Weighted(source=folders["c"])})
    outer = Mixture(sources={"a": Weighted(source=folders["a"], weight=1), "rest": Weighted(source=inner, weight=4)})
    found = [(c.name, c.source, c.weight) for c in outer.components()]
    assert found == [
        ("a", folders["a"], pytest.approx(0.2)),
        ("rest/b", folders["b"], pytest.approx(0.6)),
        ("rest/c", folders["c"], pytest.approx(0.2)),
    ]


def test_it_reads_its_sources_one_after_another(folders):
    mixture = Mixture(sources={name: Weighted(source=source) for name, source in folders.items()})
    assert [part.name for part in mixture.parts()][:4] == ["a: 0.txt", "a: 1.txt", "a: 2.txt", "b: 0.txt"]
    texts = [document.text for part in range(9) for document in mixture.read(part)]
    assert texts == [f"{name} says {number}" for name in "abc" for number in range(3)]
    check(mixture)


def test_the_fingerprint_is_that_of_the_text_not_of_the_weights(folders):
    def mixture(weight):
        return Mixture(sources={"a": Weighted(source=folders["a"], weight=weight), "b": Weighted(source=folders["b"])})

    assert mixture(1).fingerprint() == mixture(2).fingerprint()
    assert mixture(1).fingerprint() != Mixture(sources={"a": Weighted(source=folders["a"])}).fingerprint()


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({}, "data.source.sources: none"),
        ({"a b": Weighted(source=TextFiles())}, "'a b'; allowed: letters"),
        ({"a": Weighted(source=TextFiles(path="no/where"))}, "data.source.sources.a.source.path: no/where does not"),
    ],
)
def test_errors_name_the_member(sources, says):
    with pytest.raises(RequestError, match=says):
        Mixture(sources=sources).parts()


def test_other_errors_name_the_member_too():
    with pytest.raises(RunError, match="data.source.sources.a.source.sources.b: x.txt is damaged"), naming("a/b"):
        raise RunError("x.txt is damaged")
    with pytest.raises(RunError, match="^x.txt is damaged"), naming(""):
        raise RunError("x.txt is damaged")
