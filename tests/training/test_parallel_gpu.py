"""FSDP2 on two CUDA devices: the curve of one, and the same initial weights as on the CPU."""

import pytest
import torch

from lit_small_lm.__main__ import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize(
    "sizes",
    [[], ["--trainer.strategy.tensor_parallel_size", "2"], ["--trainer.strategy.replicas", "2"]],
    ids=["sharded", "tensor parallel", "replicas"],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_devices_follow_the_cpu(sizes, precision, tmp_path, tiny, lines, cli):
    shape = ["--model.shape.n_heads", "4", "--model.shape.n_kv_heads", "2", "--model.backbone.layer.canon_at", "ABCD"]
    argv = ["fit", *tiny, *shape]
    assert main([*argv, "--run_dir", str(tmp_path / "cpu")]) == 0
    cuda = ["--trainer.accelerator", "gpu", "--trainer.devices", "2", "--trainer.precision", precision]
    done = cli(*argv, *cuda, "--trainer.strategy", "FSDP2", *sizes, "--run_dir", tmp_path / "cuda")
    assert done.rc == 0, done.stderr
    close = 0.02 if precision == "bf16-mixed" else 1e-4
    wanted = [(step, pytest.approx(loss, rel=close)) for step, loss in lines(tmp_path / "cpu").pairs("train/loss")]
    assert lines(tmp_path / "cuda").pairs("train/loss") == wanted
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.accelerator", "cpu"]
    assert main(["test", "--run_dir", str(tmp_path / "cuda"), *alone, "--trainer.precision", "32-true"]) == 0
