"""A tiny model on the command line, and what its run directory says."""

import json
from pathlib import Path

import pytest

TINY = [
    "--model", "AutoregressiveLM",
    "--model.shape.dim", "16", "--model.shape.n_layers", "1", "--model.shape.n_heads", "2",
    "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "4",
    "--trainer.max_steps", "12", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
    "--trainer.limit_val_batches", "2", "--trainer.enable_progress_bar", "false",
    "--checkpoints.every_n_steps", "3", "--checkpoints.keep", "0",
]  # fmt: skip


class Lines:
    """The metrics.jsonl of a run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.all = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]

    def pairs(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of every line that has `key`."""
        return [(line["step"], line[key]) for line in self.all if key in line]


@pytest.fixture(scope="session")
def tiny(tiny_text):
    """Options of a tiny model on the tiny corpus."""
    return [*TINY, "--data.source.path", str(tiny_text)]


@pytest.fixture
def lines():
    return Lines
