"""`lit-small-lm prepare`: what it makes, what it says, and that training takes it up."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.cli import preparation
from lit_small_lm.data import encoding, store
from lit_small_lm.data.progress import Progress

CONFIG = """
model: {class_path: AutoregressiveLM, init_args: {shape: {class_path: FixedShape, init_args: {dim: 16, n_layers: 1}}}}
data: {tokenizer: Bytes, seq_len: 16, batch_size: 4}
trainer: {max_steps: 2}
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_SMALL_LM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def argv(tiny_text, tmp_path, cache):
    (tmp_path / "run.yaml").write_text(CONFIG)
    return ["prepare", "-c", str(tmp_path / "run.yaml"), "--data.source.path", str(tiny_text)]


def test_the_data_of_a_training_configuration_is_prepared(argv, cache, capsys):
    assert main(argv) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:5] == ["component", "split", "documents", "tokens", "bytes"]
    assert [line.split()[1:3] for line in lines[1:4]] == [["train", "36"], ["validation", "2"], ["test", "2"]]
    assert lines[-2] == "data: 0 empty documents skipped; whole documents are held out, by their text"
    folder = Path(lines[-1].removeprefix("data: "))
    assert folder.parent == cache / "tokens"
    assert (folder / "manifest.json").exists()
    assert printed.err == ""


def test_doing_it_again_changes_nothing(argv, cache, capsys):
    assert main([*argv, "--json"]) == 0
    first, files = capsys.readouterr().out, {file: file.stat().st_mtime_ns for file in cache.rglob("*.*")}
    assert main([*argv, "--json"]) == 0
    assert capsys.readouterr().out == first
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.*")} == files
    found = json.loads(first)["stores"][0]
    assert found["splits"]["train"]["documents"] == 36
    assert found["rule"] == "whole"


def test_training_takes_up_what_was_prepared(argv, cache, tmp_path, capsys):
    assert main(argv) == 0
    before = sorted(cache.rglob("manifest.json"))
    fit = ["fit", *argv[1:], "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    assert main([*fit, "--trainer.enable_progress_bar", "false"]) == 0
    assert sorted(cache.rglob("manifest.json")) == before


def test_verifying_names_a_damaged_shard(argv, cache, capsys):
    assert main([*argv, "--verify"]) == 0
    assert "verified: " in capsys.readouterr().err
    [file] = cache.rglob("00000.train.tokens")
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    assert main([*argv, "--verify"]) == 1
    assert "shard 0" in capsys.readouterr().err.splitlines()[-1]


def test_a_mixture_of_tables_and_text_is_prepared_by_component(tiny_text, tmp_path, cache, capsys):
    pq.write_table(pa.table({"body": [f"row {i} of the table" for i in range(600)]}), tmp_path / "a.parquet")
    mixture = {
        "pages": {"source": {"class_path": "TextFiles", "init_args": {"path": str(tiny_text)}}, "weight": 3},
        "rows": {
            "source": {
                "class_path": "HFDataset",
                "init_args": {"path": str(tmp_path / "a.parquet"), "text_column": "body"},
            }
        },
    }
    (tmp_path / "data.yaml").write_text(
        json.dumps({"data": {"source": {"class_path": "Mixture", "init_args": {"sources": mixture}}}})
    )
    config = ["prepare", "-c", str(tmp_path / "data.yaml"), "--data.tokenizer", "Bytes", "--json"]
    assert main(config) == 0
    stores = json.loads(capsys.readouterr().out)["stores"]
    assert [(found["component"], found["weight"]) for found in stores] == [("pages", 0.75), ("rows", 0.25)]
    assert sum(counts["documents"] for counts in stores[1]["splits"].values()) == 600
    assert main([*config, "--data.source.sources.rows.source.text_column", "text"]) == 2
    assert "'text' is no column" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(argv, cache, monkeypatch, capsys):
    monkeypatch.setattr(encoding, "BATCH", 5000)
    monkeypatch.setattr(store, "SHARD_TOKENS", 20_000)
    calls = []

    def interrupted(shown, progress):
        calls.append(progress.share)
        if len(calls) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(preparation.Shown, "__call__", interrupted)
    assert main(argv) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped by SIGINT; what was tokenised is kept; go on with: ")
    assert said.endswith(" ".join(argv))
    assert main(argv) == 0
    assert calls[20] > calls[5]  # not from the beginning


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data.source.path", "/none"], "data.source.path: /none does not exist"),
        (["--data.sourc.path", "x"], "did you mean --data.source.path"),
        (["--data.store", "x"], "data.store: x is a prepared store"),
        (["--verfy"], "--verfy"),
    ],
    ids=str,
)
def test_a_wrong_request_changes_nothing(more, says, argv, cache, capsys):
    assert main([*argv, *more]) == 2
    error = capsys.readouterr().err.splitlines()
    assert says in error[-1] and error[-1].startswith("error: ")
    assert not (cache / "tokens").exists()


def test_a_line_of_progress():
    progress = Progress(0.42, 1_200_000, 1_300_000_000, 5 * 10**9, 260.0, 359.0)
    assert preparation.line_of("web", progress) == ("web: 42 %, 1.2M documents, 1.3B tokens, 5M tokens/s, 5:59 left")


def test_progress_is_said_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 1.0, 4.0, 5.0, 20.0])
    monkeypatch.setattr(preparation.time, "monotonic", lambda: next(now))
    shown = preparation.Shown("data")
    for share in (0.1, 0.2, 0.3, 0.4):
        shown(Progress(share, 1, 1, 1, 1.0, None))
    shown.done()
    assert [line[:10] for line in capsys.readouterr().err.splitlines()] == ["data: 20 %", "data: 40 %"]
