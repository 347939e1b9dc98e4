"""`lit-small-lm analyze`: from a run, a checkpoint and an imported model to a page, and what is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from lit_small_lm.__main__ import main
from lit_small_lm.analysis.catalogue import ANALYSES

QUICK = ("--only", "removal,angular,profile", "--rows", "4")


@pytest.fixture
def run(two_layers, work_on):
    """A copy of it in the working folder, called "run"."""
    work_on(two_layers)


def error_of(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_a_page_with_its_figures(run, capsys):
    assert main(["analyze", "run", *QUICK, "--rescaled", "--out", "new/page"]) == 0
    out = Path("new/page")
    assert {file.name for file in out.iterdir()} == {
        "index.html", "analysis.json", "removal.png", "angular.png", "angular_rescaled.png", "profile.png",
    }  # fmt: skip
    for file in out.glob("*.png"):
        with Image.open(file) as image:
            image.load()
    found = json.loads((out / "analysis.json").read_text())
    assert list(found["results"]) == ["removal", "angular", "profile"]
    assert found["data"]["rows"] == 4 and found["data"]["tokens"] == 64 and found["data"]["unit"] == "rows"
    assert "exact likelihood" in (out / "index.html").read_text()
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "new/page/index.html" and "removed" in said.out
    assert said.err == ""


def test_the_same_request_gives_the_same_files(run, capsys):
    argv = ["analyze", "run", "--only", "jacobian,noise,lens", "--rows", "3"]
    for out in ("one", "two"):
        assert main([*argv, "--out", out]) == 0
    assert [file.read_bytes() for file in sorted(Path("one").iterdir())] == [
        file.read_bytes() for file in sorted(Path("two").iterdir())
    ]
    capsys.readouterr()
    assert main([*argv, "--json", "--seed", "1"]) == 0
    other, first = json.loads(capsys.readouterr().out), json.loads(Path("one/analysis.json").read_text())
    assert other["results"]["noise"] != first["results"]["noise"]
    assert other["results"]["lens"] == first["results"]["lens"]  # nothing random in it


def test_a_checkpoint_file_and_other_text(run, capsys, tiny_text):
    file = next(Path("run/checkpoints").iterdir())
    argv = ["analyze", str(file), *QUICK, "--json", "--split", "test", "--data.source.path", str(tiny_text)]
    assert main([*argv, "--data.seq_len", "8", "--documents", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["split"] == "test" and found["data"]["row_length"] == 8
    assert found["model"]["name"] == f"run/{file.name}" and 1 <= found["data"]["rows"] <= 4


@pytest.mark.slow
def test_every_analysis(run, capsys):
    assert main(["analyze", "run", "--rows", "8", "--out", "page"]) == 0
    found = json.loads(Path("page/analysis.json").read_text())
    assert set(found["results"]) == set(ANALYSES)
    assert not any("unmeasured" in result for result in found["results"].values())


@pytest.mark.slow
def test_an_imported_model(run, public_folder, tiny_text, capsys):
    assert main(["import", str(public_folder()), "foreign"]) == 0
    capsys.readouterr()
    assert main(["analyze", "foreign", *QUICK, "--json", "--data.source.path", str(tiny_text)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"]["layers"] >= 1 and said.err == ""


def test_without_matplotlib_there_are_tables(run, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    assert main(["analyze", "run", *QUICK, "--out", "page"]) == 0
    assert {file.name for file in Path("page").iterdir()} == {"index.html", "analysis.json"}
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1 and 'pip install "lit-small-lm[plot]"' in notes[0]
    assert "<details open>" in Path("page/index.html").read_text()


def test_a_text_that_changed_is_said(run, capsys, tiny_text):
    record = "run/config.yaml"  # the checkpoint's own record counts, not the file beside it
    Path(record).unlink()
    assert main(["analyze", "run", *QUICK, "--json"]) == 0
    assert capsys.readouterr().err == ""


BAD = {
    "nothing there": (["nowhere"], "nowhere"),
    "no run": ([], "RUN"),
    "a misspelt option": (["run", "--onyl", "lens"], "--only"),
    "an option of fit": (["run", "--optim.lr", "1"], "optim.lr"),
    "an option of the model": (["run", "--model.shape.dim", "8"], "model"),
    "an unknown analysis": (["run", "--only", "lense"], "did you mean lens?"),
    "nothing left": (["run", "--only", "lens", "--skip", "lens"], "leaves nothing"),
    "greedier than deep": (["run", "--greedy", "3"], "--greedy: 3; the model has 2 layers"),
    "no such text": (["run", "--data.source.path", "none"], "data.source.path: none does not exist"),
    "rows of no length": (["run", "--data.seq_len", "0"], "data.seq_len: 0"),
    "a source there is not": (["run", "--data.source", "Web"], "Web"),
    "a file for a folder": (["run", "--out", "run/config.yaml"], "run/config.yaml"),
    "a folder that is used": (["run", "--out", "run"], "not empty"),
    "a plug-in there is not": (["run", "--plugins", "none.py"], "none.py"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(run, refused, case):
    argv, said = BAD[case]
    refused(["analyze", *argv], said)


def test_a_damaged_checkpoint(run, capsys):
    file = next(Path("run/checkpoints").iterdir())
    file.write_bytes(file.read_bytes()[:1000])
    assert main(["analyze", str(file), "--out", "page"]) == 1
    assert "is damaged" in error_of(capsys) and not Path("page").exists()


def test_a_failure_on_the_way_leaves_nothing(run, snapshot, monkeypatch):
    monkeypatch.setattr("lit_small_lm.analysis.page.page", lambda *_: 1 / 0)
    before = snapshot()
    assert main(["analyze", "run", *QUICK, "--out", "page"]) == 1
    assert snapshot() == before


@pytest.mark.slow
def test_a_diffusion_model(fit, capsys):
    """Bounds with their draws; masked positions apart from the others."""
    assert fit("--model", "DiffusionLM", "--model.shape.n_layers", "2", "--run_dir", "run").status == 0
    capsys.readouterr()
    assert main(["analyze", "run", *QUICK, "--draws", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["draws"] == 3 and "upper bound" in found["bound"]
    assert list(found["results"]["angular"]) == ["mean", "scored", "not scored"]
    assert main(["prune", "run", "--layers", "0", "--out", "small", "--rows", "4"]) == 0
    assert main(["analyze", "small", *QUICK, "--draws", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"]["places"] == [1]
