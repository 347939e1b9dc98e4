"""`lit-small-lm plan`: configurations, runs and public models, as table and as JSON, and what people mistype."""

import json
from pathlib import Path

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in
from lit_small_lm.errors import RequestError

CONFIG = """
model:
  class_path: AutoregressiveLM
  init_args: {shape: {class_path: FixedShape, init_args: {dim: 32, n_layers: 2, n_heads: 4}}}
data: {tokenizer: Bytes, seq_len: 16, batch_size: 8}
trainer: {max_steps: 10, accelerator: cpu, precision: 32-true}
"""
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 300, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a configuration and a public model's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


@pytest.fixture
def planned(here, capsys):
    """`planned("run.yaml", "--head", "tied")` -> the JSON object."""

    def run(*argv):
        status = main(["plan", *argv, "--json"])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out)

    return run


def test_a_configuration(planned):
    found = planned("run.yaml")
    assert found["model"]["vocab_size"] == 259 and found["model"]["vocabulary"] == "data.tokenizer Bytes"
    assert found["parameters"]["total"] == found["parameters"]["non_embedding"] + 259 * 32
    assert found["tokens"] == {
        "per_step": 128,
        "steps": 10,
        "run": 1280,
        "per_parameter": pytest.approx(1280 / found["parameters"]["active"]),
    }
    assert found["memory"]["training"]["weights_bytes"] == 4 * found["parameters"]["total"]
    assert found["cache"]["per_token_bytes"] == 2 * 2 * 32 * 2
    assert found["time"] is None


def test_options_of_fit_go_over_it(planned):
    found = planned(
        "run.yaml",
        "--model.shape.n_layers",
        "3",
        "--data.batch_size=16",
        "--max_tokens",
        "100000",
        "--trainer.max_steps",
        "-1",
    )
    assert found["model"]["n_layers"] == 3
    assert found["tokens"]["per_step"] == 256 and found["tokens"]["run"] >= 100_000
    less = planned("run.yaml", "--data.micro_batch_size", "2")["memory"]["training"]
    assert less["activations_bytes"] < planned("run.yaml")["memory"]["training"]["activations_bytes"] / 3


def test_own_options_stand_anywhere(planned):
    assert planned("--vocab_size", "500", "run.yaml")["model"]["vocab_size"] == 500
    assert planned("--model.shape.n_layers", "3", "run.yaml")["model"]["n_layers"] == 3
    found = planned("-c", "run.yaml", "--head", "untied")
    assert found["model"]["head"] == "untied" and found["parameters"]["components"]["head"] == 259 * 32


def test_a_public_model(planned):
    by_folder, by_file = planned("public"), planned("public/config.json")
    assert by_folder["parameters"] == by_file["parameters"]
    attention, mlp = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48
    assert by_folder["parameters"]["total"] == 300 * 32 + 2 * (attention + mlp + 2 * 32) + 32
    assert by_folder["model"]["total_if_tied"] is None
    assert by_folder["tokens"]["run"] is None


def test_a_tie_that_is_not_said(planned, here, capsys):
    config = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    (here / "public" / "config.json").write_text(json.dumps(config))
    found = planned("public")["model"]
    assert found["total_if_untied"] - found["total_if_tied"] == 300 * 32
    assert planned("public", "--head", "tied")["model"]["total_if_tied"] is None
    assert main(["plan", "public"]) == 0
    assert "--head tied or --head untied settles it" in " ".join(capsys.readouterr().out.split())


def test_a_run_and_its_checkpoint(planned, here, tiny_text, capsys):
    """The vocabulary of a BPE is what the corpus filled, not what was asked for."""
    bpe = ["--data.tokenizer", "BPE", "--data.tokenizer.vocab_size", "400", "--data.source.path", str(tiny_text)]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.max_steps", "2"]
    assert main(["fit", "-c", "run.yaml", *bpe, *quiet, "--run_dir", "run"]) == 0
    capsys.readouterr()
    of_run, of_file = planned("run"), planned(str(checkpoints_in(Path("run"))[0]))
    assert of_run["parameters"] == of_file["parameters"]
    assert of_run["model"]["vocab_size"] <= 400 and of_run["model"]["vocabulary"] == "the run's tokenizer"
    assert planned("run", "--data.batch_size", "4")["tokens"]["per_step"] == 64


def test_the_table_says_what_the_object_does(planned, capsys):
    found = planned("run.yaml", "--device", "a100-80gb")
    assert main(["plan", "run.yaml", "--device", "a100-80gb"]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert f"{found['parameters']['total']:,} in all" in text
    assert "kB (" in text and "KiB)" in text
    assert "a100-80gb: " in text and "1,280 tokens" in text
    assert max(map(len, lines)) <= 120


def test_a_budget_shape_says_how_near_it_comes(planned):
    found = planned(
        "run.yaml", "--model.shape", "BudgetShape", "--model.shape.params", "200000", "--model.shape.head_dim", "8"
    )
    assert any("BudgetShape" in note and "200,000" in note for note in found["notes"])


@pytest.mark.parametrize("asked", [["--budget", "1e17"], ["--target_loss", "4.0"]])
def test_the_inverse(asked, planned):
    found = planned("run.yaml", "--device", "rtx-4090", *asked)
    assert [each["style"] for each in found["alternatives"]] == ["wide", "medium", "deep"]
    assert all(each["memory"] > 0 and each["bill"]["seconds"] > 0 for each in found["alternatives"])


def test_a_budget_needs_no_configuration(planned, capsys):
    assert planned("--budget", "1e17")["alternatives"]
    assert main(["plan", "--budget", "1e17"]) == 0
    assert "width per layer" in " ".join(capsys.readouterr().out.split())


def test_an_explanation(here, capsys):
    assert main(["plan", "run.yaml", "--explain"]) == 0
    assert "scaled_dot_product_attention" in capsys.readouterr().out


BAD = {
    "nothing at all": ([], "CONFIG: missing"),
    "no such file": (["nowhere.yaml"], "'nowhere.yaml' does not exist"),
    "no such json": (["nowhere.json"], "nowhere.json does not exist"),
    "no such checkpoint": (["nowhere.ckpt"], "nowhere.ckpt does not exist"),
    "a folder of nothing": (["empty"], "empty holds neither config.yaml (a run) nor config.json"),
    "not a configuration": (["notes.yaml"], "notes.yaml"),
    "not JSON": (["broken.json"], "broken.json: no JSON"),
    "another model": (["other.json"], "model_type: 'lama' is not a known name"),
    "two of them": (["run.yaml", "public"], "CONFIG is run.yaml already"),
    "unknown device": (["run.yaml", "--device", "a100-80g"], "did you mean a100-80gb?"),
    "negative budget": (["run.yaml", "--budget", "-1e18"], "--budget"),
    "a budget in words": (["run.yaml", "--budget", "much"], "--budget: 'much'; allowed: "),
    "hours of nothing": (["run.yaml", "--budget", "8h"], "--device"),
    "two questions": (["run.yaml", "--explain", "--budget", "1e18"], "exclude each other"),
    "an option with a typo": (["run.yaml", "--model.shape.dmi", "8"], "did you mean --model.shape.dim?"),
    "an own option with a typo": (["run.yaml", "--devise", "cpu"], "did you mean --device?"),
    "a shape that does not go": (["run.yaml", "--model.shape.dim", "30"], "dim 30 is not divisible by n_heads 4"),
    "rows that cannot be shared": (["run.yaml", "--trainer.devices", "3"], "is not divisible by 3"),
    "a model in a public one": (["public", "--model.shape.dim", "8"], "--model.shape.dim"),
    "an out-of-reach loss": (["run.yaml", "--target_loss", "0.5"], "not reachable"),
    "a budget for nothing": (["run.yaml", "--budget", "10"], "budget"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_people_mistype(case, here, capsys):
    (here / "empty").mkdir()
    (here / "notes.yaml").write_text("buy: milk\n")
    (here / "broken.json").write_text("{")
    (here / "other.json").write_text('{"model_type": "lama"}')
    argv, says = BAD[case]
    status, printed = main(["plan", *argv]), capsys.readouterr()
    lines = printed.err.splitlines()
    assert status == 2, printed.err
    assert printed.out == "" and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) <= 300
    assert says in lines[0], lines[0]


def test_a_tokenizer_that_needs_text(here, capsys, monkeypatch):
    from lit_small_lm.data.tokenizer import Bytes

    def learn(self, texts):
        return next(texts)

    monkeypatch.setattr(Bytes, "learn", learn)
    assert main(["plan", "run.yaml"]) == 2
    assert "give --vocab_size" in capsys.readouterr().err
    assert main(["plan", "run.yaml", "--vocab_size", "300"]) == 0


def test_it_is_a_request_error_that_is_raised():
    from lit_small_lm.cli.plan import config_word

    assert config_word(["--a", "b", "c.yaml", "--d=e", "--f"]) == ("c.yaml", ["--a", "b", "--d=e", "--f"])
    with pytest.raises(RequestError):
        config_word(["a", "b"])
