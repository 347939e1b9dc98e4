"""A run whose width is solved for a number of parameters: what it says, and that nothing solves it again."""

import json

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, load, read
from lit_small_lm.planning.counts import size
from lit_small_lm.plugin import Dims, Shape, Size
from lit_small_lm.shapes import BudgetShape
from lit_small_lm.training import lit

SHAPE = [
    "--model", "AutoregressiveLM", "--model.shape", "BudgetShape", "--model.shape.params", "20000",
    "--model.shape.n_layers", "2", "--model.shape.head_dim", "4", "--model.shape.hidden_multiple", "8",
]  # fmt: skip
DIMS = Dims(dim=24, n_layers=2, n_heads=6, n_kv_heads=6, head_dim=4, hidden=64)
"""20,160 parameters with the 259 ids of Bytes, of which 6,216 are the embedding."""
REST = [
    "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "4", "--trainer.max_steps", "2",
    "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.limit_val_batches", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def options(tiny_text):
    return [*SHAPE, *REST, "--data.source.path", str(tiny_text)]


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """The directory of a run of two steps that can go on."""
    folder = tmp_path_factory.mktemp("budget") / "run"
    assert main(["fit", *options, "--schedule.decay", "0", "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def twice_as_large(monkeypatch):
    """Solving again would now give other widths, as with another vocabulary or a changed family."""
    monkeypatch.setattr(lit, "size", lambda outline: Size(*(2 * count for count in size(outline))))


def widths(folder):
    return load(folder).net.dims


def test_a_run_says_how_near_it_comes(options, tmp_path, capsys):
    assert main(["fit", *options, "--run_dir", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("shape: ")]
    found = sum(p.numel() for p in load(tmp_path / "run").net.parameters())
    share = 100 * (found / 20_000 - 1)
    assert line.startswith(f"shape: BudgetShape: 20,000 total parameters asked, {found:,} ({share:+.2f} %) at 2 layers")


def test_the_record_holds_the_widths_and_what_was_asked(run):
    record = read(checkpoints_in(run)[0])["lit_small_lm"]
    assert Shape.from_dict(record["shape"]).resolve() == DIMS
    asked = BudgetShape(params=20000, n_layers=2, head_dim=4, hidden_multiple=8)
    assert Shape.from_dict(record["shape_asked"]) == asked
    assert widths(run) == DIMS


def test_a_resume_keeps_the_widths(options, run, tmp_path, capsys, twice_as_large):
    start = ["--branch_from", str(checkpoints_in(run)[0]), "--run_dir", str(tmp_path / "longer")]
    assert main(["fit", *start, "--trainer.max_steps", "4"]) == 0
    assert main(["fit", "--resume", "--run_dir", str(tmp_path / "longer"), "--trainer.max_steps", "6"]) == 0
    said = capsys.readouterr().err
    assert "changed: trainer.max_steps: 4 -> 6" in said
    assert "changed: model" not in said
    assert widths(tmp_path / "longer") == DIMS
    lines = (tmp_path / "longer" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 6


def test_weights_alone_bring_their_widths(options, run, tmp_path, twice_as_large):
    argv = [*options, "--init_from", str(checkpoints_in(run)[0]), "--run_dir", str(tmp_path / "new")]
    assert main(["fit", *argv]) == 0
    assert widths(tmp_path / "new") == DIMS


def test_another_budget_is_solved_anew(options, run, tmp_path, capsys):
    other = [*options, "--model.shape.params", "60000", "--run_dir", str(tmp_path / "new")]
    assert main(["fit", *other, "--init_from", str(checkpoints_in(run)[0])]) == 2
    assert "tensors do not fit" in capsys.readouterr().err
    assert main(["fit", "--resume", "--run_dir", str(run), "--model.shape.params", "60000"]) == 2
    assert "shape.init_args.params: 60000, but the checkpoint has 20000" in capsys.readouterr().err


def test_scoring_and_writing_solve_nothing(run, capsys, twice_as_large):
    assert main(["test", "--run_dir", str(run)]) == 0
    assert main(["generate", str(run), "--prompt", "the ", "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("the ")


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("300", "shape.params: 300 (total); the smallest network, 2 deep and 4 wide, has "),
        ("0", "model.shape.params: 0; allowed: a whole number, at least 1"),
    ],
)
def test_a_budget_out_of_reach_is_one_line(params, says, options, tmp_path, capsys):
    argv = [*options, "--model.shape.params", params, "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *argv]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
