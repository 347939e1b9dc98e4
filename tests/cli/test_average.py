"""The mean of checkpoints: which are taken, what their mean is, and that it is a run like any other."""

import json
import math
import shutil

import pytest
import torch

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import averaged, checkpoints_in, read, write
from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.block_diffusion import BlockDiffusion

PHASES = [
    "--model", "DiffusionLM", "--model.objective", "BlockDiffusion", "--trainer.callbacks", "WSDConversion",
    "--trainer.callbacks.blocks", "[1,4]", "--trainer.callbacks.shares", "[0.5,0.5]",
]  # fmt: skip
OPTIONS = [
    "--model.shape.dim", "16", "--model.shape.n_layers", "1", "--model.shape.n_heads", "2", "--data.tokenizer", "Bytes",
    "--data.seq_len", "16", "--data.batch_size", "4", "--trainer.max_steps", "12", "--trainer.val_check_interval", "2",
    "--trainer.limit_val_batches", "2", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
    "--trainer.enable_progress_bar", "false", "--checkpoints.every_n_steps", "1", "--checkpoints.keep", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_text, tmp_path_factory):
    """A conversion that keeps a checkpoint of every step and validates every second one."""
    folder = tmp_path_factory.mktemp("average") / "run"
    argv = ["fit", *PHASES, *OPTIONS, "--data.source.path", str(tiny_text), "--run_dir", str(folder)]
    assert main(argv) == 0
    return folder


def weights(file):
    return read(file)["state_dict"]


def test_the_mean_of_the_best_of_the_last_objective(run, tmp_path, capsys):
    out = tmp_path / "mean"
    assert main(["average", str(run), str(out), "--best", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val/loss_bound"] for line in lines if "val/loss_bound" in line}
    assert sorted(losses) == [2, 4, 6, 8, 10, 12]
    wanted = sorted(sorted((8, 10, 12), key=losses.get)[:2])  # up to step 6 blocks are of one position
    assert found["steps"] == wanted and found["values"] == [losses[step] for step in wanted]
    parts = [weights(run / "checkpoints" / f"step={step:08d}.ckpt") for step in wanted]
    mean = weights(checkpoints_in(out)[0])
    assert mean.keys() == parts[0].keys()
    for name in mean:
        torch.testing.assert_close(mean[name], (parts[0][name] + parts[1][name]) / 2)
    assert load(out).objective == BlockDiffusion(block_size=4)
    assert load(out).record["averaged"]["steps"] == wanted
    assert main(["test", "--run_dir", str(out), "--trainer.limit_test_batches", "1"]) == 0


def test_the_mean_of_equal_checkpoints_is_one_of_them_and_order_does_not_matter(run):
    files = checkpoints_in(run)[:3]
    same, one = averaged(files[:1] * 3)["state_dict"], weights(files[0])
    assert all(torch.equal(same[name], one[name]) for name in one)
    there, back = (averaged(order)["state_dict"] for order in (files, files[::-1]))
    assert all(torch.allclose(there[name], back[name], rtol=1e-7, atol=0) for name in there)


def test_refused(run, tmp_path, capsys):
    out = str(tmp_path / "out")
    cases = {
        (str(run), out, "--best", "4"): "--best: 4; ",
        (str(run), out, "--best", "0"): "--best: 0; allowed: a whole number, at least 1",
        (str(run), str(run)): "is not empty",
        (str(tmp_path / "none"), out): "none; allowed: a run directory",
        (str(checkpoints_in(run)[0]), out): ".ckpt; allowed: a run directory",
        (str(run / "checkpoints"), out): "its metrics.jsonl holds no validation with a finite loss",
    }
    for argv, says in cases.items():
        assert main(["average", *argv]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def with_metrics(run, folder, change):
    """A copy of a run whose metrics.jsonl is another."""
    shutil.copytree(run, folder)
    file = folder / "metrics.jsonl"
    file.write_text(change(file.read_text()))
    return str(folder)


def test_a_loss_that_is_no_number_is_never_the_best(run, tmp_path, capsys):
    without = with_metrics(run, tmp_path / "two", lambda text: nan(text, 12))
    assert main(["average", without, str(tmp_path / "mean"), "--best", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [8, 10]
    assert main(["average", without, str(tmp_path / "three"), "--best", "3"]) == 2
    assert "keeps 2 validated checkpoints" in capsys.readouterr().err


def nan(text, step):
    """Metrics whose bound at `step` is not a number."""
    lines = [json.loads(line) for line in text.splitlines()]
    found = [{**line, "val/loss_bound": math.nan} if line["step"] == step and "val/loss_bound" in line else line
             for line in lines]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in found)


def test_metrics_cut_off_or_damaged(run, tmp_path, capsys):
    cut = with_metrics(run, tmp_path / "cut", lambda text: text + '{"step": 13, "val/lo')
    assert main(["average", cut, str(tmp_path / "mean"), "--best", "1"]) == 0
    for line in ("{", "5", "text"):
        damaged = with_metrics(run, tmp_path / f"damaged{ord(line[0])}", lambda text, line=line: f"{line}\n{text}")
        capsys.readouterr()
        assert main(["average", damaged, str(tmp_path / "out"), "--best", "1"]) == 1
        assert capsys.readouterr().err == f"error: {damaged}/metrics.jsonl: line 1 is no JSON object\n"
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_different_networks_are_refused(run, tmp_path):
    content = read(checkpoints_in(run)[0])
    content["state_dict"] = {name: tensor[:1] for name, tensor in content["state_dict"].items()}
    write(content, tmp_path / "other.ckpt")
    with pytest.raises(RequestError, match="other.ckpt is of another network than"):
        averaged([checkpoints_in(run)[0], tmp_path / "other.ckpt"])
