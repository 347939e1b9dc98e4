"""Every README block that is not marked no-test is run as it stands, on a small corpus and for two steps."""

import os
import re
import shlex
from pathlib import Path

import pytest

from lit_small_lm.__main__ import main

README = Path(__file__).parents[2] / "README.md"
SMALL = [
    "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "2", "--data.source.path", "my_folder",
    "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--checkpoints.every_n_steps", "1",
    "--model.shape.dim", "16", "--model.shape.n_layers", "1",
]  # fmt: skip
"""Added to every `fit` that starts afresh."""


def blocks(language):
    pattern = re.compile(rf"(<!-- no-test -->\n)?```{language}\n(.*?)```", re.DOTALL)
    return [match[2] for match in pattern.finditer(README.read_text()) if not match[1]]


def commands():
    return [line for block in blocks("console") for line in block.splitlines() if line.startswith("lit-small-lm")]


def test_the_readme_has_commands_and_python():
    assert len(commands()) >= 10
    assert len(blocks("python")) >= 2


@pytest.mark.slow
def test_commands_run_in_order(tmp_path, tiny_text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_folder").symlink_to(tiny_text)
    (tmp_path / "configs").symlink_to(README.parent / "configs")
    for line in commands():
        argv = shlex.split(line)[1:]
        if argv[0] == "fit":
            argv = shorten(argv)
        try:
            status = main(argv)
        except SystemExit as done:  # --print_config and --help leave through argparse
            status = done.code
        assert status in (0, None), line


def shorten(argv):
    """The same command for a few steps of a tiny model."""
    numbers = {"step=00000560": "step=00000002", "960": "4", "800": "3", "160": "1"}
    for long, short in numbers.items():
        argv = [text.replace(long, short) for text in argv]
    if "--trainer.devices" in argv:
        argv = argv[: argv.index("--trainer.accelerator")]  # two processes: tests/training/test_faults.py
    if "--resume" in argv or "--branch_from" in argv:
        return argv
    return [*argv, *SMALL]


@pytest.mark.parametrize("block", blocks("python"), ids=["norm_scheme", "training"])
def test_python_runs(block, tmp_path, tiny_text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = block.replace("lsl.TokenData(", f"lsl.TokenData(source=TextFiles(path={os.fspath(tiny_text)!r}), ")
    file = tmp_path / "block.py"
    file.write_text("from lit_small_lm.data.sources import TextFiles\n" + source)
    scope = {"__name__": f"readme_{abs(hash(block))}"}
    exec(compile(file.read_text(), str(file), "exec"), scope)  # noqa: S102
