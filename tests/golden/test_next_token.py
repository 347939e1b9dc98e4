"""A short seeded run on one CPU thread: its losses are stored, and change only where a change says so.

To store new ones after a change that means to alter numbers, and say so in CHANGELOG.md:

    LIT_SMALL_LM_STORE_GOLDEN=1 pytest tests/golden
"""

import json
import os
from pathlib import Path

import pytest

from lit_small_lm.__main__ import main

STORED = Path(__file__).with_name("next_token.json")
RUN = [
    "fit", "--model", "AutoregressiveLM", "--model.backbone.norm", "LayerNormScaling",
    "--model.backbone.layer.canon_at", "ABCD", "--model.shape.dim", "32", "--model.shape.n_layers", "3",
    "--model.shape.n_heads", "4", "--model.shape.n_kv_heads", "2", "--data.tokenizer", "Bytes",
    "--data.seq_len", "32", "--data.batch_size", "4", "--optim.lr", "0.01", "--schedule.warmup", "5",
    "--trainer.max_steps", "50", "--trainer.val_check_interval", "25", "--trainer.limit_val_batches", "4",
    "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


def curve(text, run_dir):
    assert main([*RUN, "--data.source.path", str(text), "--run_dir", str(run_dir)]) == 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {key: [line[key] for line in lines if key in line] for key in ("train/loss", "val/loss")}


def test_curve(tmp_path, tiny_text):
    found = curve(tiny_text, tmp_path / "first")
    if os.environ.get("LIT_SMALL_LM_STORE_GOLDEN"):
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(STORED.read_text())
    assert len(found["train/loss"]) == 50
    for key, values in stored.items():
        assert found[key] == pytest.approx(values, rel=1e-5), key
    assert found["train/loss"][-1] < found["train/loss"][0] - 1  # it learns


def test_the_same_command_gives_the_same_bits(tmp_path, tiny_text):
    assert curve(tiny_text, tmp_path / "first") == curve(tiny_text, tmp_path / "second")
