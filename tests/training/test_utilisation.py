"""Model FLOPs per second of a run, and their share of a peak where one is known."""

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.planning.devices import by_name
from lit_small_lm.training.callbacks import utilisation
from lit_small_lm.training.callbacks.utilisation import Work, peak_of

GPU = torch.device("cuda", 0)


def named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


def test_a_known_device_has_the_peak_of_the_precision(monkeypatch):
    named(monkeypatch, "NVIDIA H100 80GB HBM3")
    assert peak_of(GPU, "bf16-mixed") == by_name("h100").peaks["bf16"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak_of(GPU, "32-true") == by_name("h100").peaks["fp32"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_of(GPU, "32-true") == by_name("h100").peaks["tf32"]


def test_nothing_is_guessed(monkeypatch):
    named(monkeypatch, "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert peak_of(GPU, "bf16-mixed") is None
    named(monkeypatch, "Tesla T4")
    assert peak_of(GPU, "bf16-mixed") is None  # it has no bf16
    assert peak_of(GPU, "64-true") is None
    assert peak_of(torch.device("cpu"), "32-true") is None
    assert Work(10.0, None).figures(3.0) == {"train/model_flops_per_second": 30.0}
    assert Work(None, 100.0).figures(3.0) == {}


@pytest.mark.parametrize("peak", [None, 1e9])
def test_a_run_writes_them(peak, tiny, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(utilisation, "peak_of", lambda device, precision: peak)
    assert main(["fit", *tiny, "--trainer.max_steps", "2", "--run_dir", str(tmp_path / "run")]) == 0
    found = lines(tmp_path / "run")
    rates = found.pairs("train/model_flops_per_second")
    tokens = dict(found.pairs("train/tokens_per_second"))
    assert [step for step, _ in rates] == [1, 2]
    per_token = [rate / tokens[step] for step, rate in rates]
    assert per_token[0] == pytest.approx(per_token[1], rel=1e-2) and per_token[0] > 0
    shares = dict(found.pairs("train/model_flops_utilisation"))
    assert shares == ({} if peak is None else {step: pytest.approx(rate / peak) for step, rate in rates})
