"""The study of the curse of depth: what it reads from runs, what it chooses, and the one sign that is asserted."""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_small_lm.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def depth():
    pytest.importorskip("matplotlib")
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "depth.py"), run_name="depth"))


def written(depth, runs, cell, **record):
    (runs / cell.name).mkdir()
    (runs / cell.name / "record.json").write_text(json.dumps({**cell._asdict(), **record}))


def test_layers_are_in_their_order_however_they_are_written(depth):
    seen = {f"depth_variance/{layer:02}": layer / 2 for layer in reversed(range(12))}
    assert depth.profiles({**seen, "train/loss": 1.0, "depth_variance/heat": 9.0}) == {
        "variance": [layer / 2 for layer in range(12)]
    }


def test_a_run_that_diverged_is_never_the_best(depth, tmp_path):
    arm, study = ("autoregressive", 2, "pre"), depth.QUICK._replace(rates=(0.002, 0.006, 0.02), deviations=(0.05,))
    for rate, bits in zip(study.rates, (math.nan, 3.0, None), strict=True):
        cell = depth.Cell(*arm, rate, 0.05, depth.GRID_SEED, study.grid_steps)
        written(depth, tmp_path, cell, bits_per_byte=bits)
    assert depth.best(arm, study, tmp_path)["rate"] == 0.006


def test_differences_are_of_the_same_seeds(depth):
    def arm(scheme, bits):
        profile = {"variance": [1.0, 4.0], "removal": [0.5, 0.1]}
        records = [{"bits_per_byte": value, "rate": 0.02, "deviation": 0.05, "profile": profile} for value in bits]
        return depth.Arm("autoregressive", 2, scheme, records)

    line = depth.line(arm("lns", (2.1, 3.1, 4.1)), arm("pre", (2.0, 3.0, 4.0)), depth.Study())
    assert line["from_pre"] == 0.1 and line["from_pre_95"] == 0.0 and line["seed_deviation"] == 1.0
    assert line["rate_at_the_edge"] and line["variance_last_by_first"] == 4.0
    other = depth.line(arm("lns", (3.1, 2.1, 4.1)), arm("pre", (2.0, 3.0, 4.0)), depth.Study())
    assert other["from_pre"] == 0.1 and other["from_pre_95"] == pytest.approx(4.303 * 1 / 3**0.5, rel=1e-3)


@pytest.mark.slow
def test_variance_of_layer_norm_scaling_stays_below_that_of_pre_norm(depth, tmp_path, tiny_text):
    last = {}
    for scheme in ("pre", "lns"):
        cell = depth.Cell("autoregressive", 8, scheme, 0.006, 0.15, 1, 40)
        argv = depth.arguments(cell, depth.Study(steps=40), final=True)
        own = ["--data.source.path", str(tiny_text), "--run_dir", str(tmp_path / scheme)]
        assert main(["fit", *argv, *own]) == 0
        last[scheme] = depth.figures(tmp_path / scheme)["profile"]["variance"]
    assert len(last["pre"]) == 8
    assert all(below < above for below, above in zip(last["lns"][1:], last["pre"][1:], strict=True))


def test_a_scheme_of_which_a_seed_diverged_has_its_line(depth):
    profile = {"variance": [1.0, 4.0], "removal": [0.5, 0.1]}
    good = {"bits_per_byte": 2.0, "rate": 0.02, "deviation": 0.05, "profile": profile}
    bad = {**good, "bits_per_byte": None, "profile": {}}
    base = depth.Arm("autoregressive", 2, "pre", [good, good, good])
    line = depth.line(depth.Arm("autoregressive", 2, "rezero", [good, bad, good]), base, depth.Study())
    assert line["bits_per_byte"] is None and line["from_pre_95"] is None and line["variance_last_by_first"] == 4.0
    line = depth.line(depth.Arm("autoregressive", 2, "rezero", [bad, bad, bad]), base, depth.Study())
    assert line["seed_deviation"] is None and line["variance_last_by_first"] is None
