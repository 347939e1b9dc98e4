"""Training and generation on a CUDA device, in the precision it chooses by itself."""

import json

import pytest
import torch

from lit_small_lm import load
from lit_small_lm.__main__ import main

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_a_run_on_cuda_follows_the_cpu(precision, tmp_path, tiny, lines):
    argv = ["fit", *tiny, "--model.backbone.layer.canon_at", "ABCD"]
    assert main([*argv, "--run_dir", str(tmp_path / "cpu")]) == 0
    cuda = ["--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.precision", precision]
    assert main([*argv, *cuda, "--run_dir", str(tmp_path / "cuda")]) == 0
    wanted = [(step, pytest.approx(loss, rel=0.02)) for step, loss in lines(tmp_path / "cpu").pairs("train/loss")]
    assert lines(tmp_path / "cuda").pairs("train/loss") == wanted


def test_the_precision_is_chosen_and_the_compiled_network_trains(tmp_path, tiny, capsys):
    argv = [
        option for option in tiny if option not in ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    ]
    argv += ["--trainer.enable_progress_bar", "true", "--compile", "default", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *argv]) == 0
    assert "device: cuda" in capsys.readouterr().err
    model = load(tmp_path / "run", device="cuda")
    assert model.logits(torch.tensor([[0, 5]], device="cuda")).isfinite().all()
    assert main(["test", "--run_dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "test.json").read_text())["documents"] > 0
