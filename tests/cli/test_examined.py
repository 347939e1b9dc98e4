"""What `analyze` and `prune` make of runs that are damaged, or that nothing can be read off."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.durable import manifest_of, save

COMMANDS = {
    "analyze": ["analyze", "run", "--rows", "8", "--out", "out"],
    "prune": ["prune", "run", "--keep", "1", "--by", "greedy", "--rows", "8", "--out", "out"],
}


@pytest.fixture
def changed(two_layers, work_on):
    """`changed(change)`: a copy of the run with one checkpoint, whose content `change` has been at."""

    def make(change):
        work_on(two_layers)
        last, *others = checkpoints_in(Path("run"))
        content = read(last)
        change(content)
        save(last, lambda stream: torch.save(content, stream))
        for file in others:
            file.unlink()
            manifest_of(file).unlink()

    return make


def fill(value, part=""):
    def change(content):
        for name, tensor in content["state_dict"].items():
            if part in name:
                tensor.fill_(value)

    return change


def record(config):
    return lambda content: content["lit_small_lm"].update(config=config)


DAMAGED = {
    "a layer of nan": (fill(torch.nan, "layers.1"), "is not finite"),
    "a layer that overflows": (fill(3e38, "layers.1"), "run: its loss on this text is nan; nothing that layers do"),
    "no yaml": (record("data: [1,2"), "checkpoint: its record is damaged (config: ParserError)"),
    "a list": (record("- a\n- b\n"), "checkpoint: its record is damaged (config"),
    "a number for data": (record("data: 5\n"), "checkpoint: its record is damaged (config: data and model"),
    "a number for the model": (record("model: 5\n"), "checkpoint: its record is damaged (config: data and model"),
    "a matrix is missing": (
        lambda content: content["state_dict"].pop("net.layers.1.mixer.o_proj.weight"), "o_proj.weight: none in"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_runs(changed, refused, command, case):
    change, says = DAMAGED[case]
    changed(change)
    refused(COMMANDS[command], says, status=1)


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_that_do_not_fit_in_memory(changed, refused, monkeypatch, command):
    changed(lambda content: None)

    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 80 bytes")

    monkeypatch.setattr("lit_small_lm.analysis.subject.Subject.nats", full)
    refused(COMMANDS[command], "data.seq_len: 16; one row of so many positions does not fit in memory", status=1)


@pytest.mark.slow  # every figure
def test_a_network_that_says_nothing_has_a_page(changed, capsys):
    """Weights of zero: no variance, no angle, no gradient; no warning of the figures, either."""
    changed(fill(0.0))
    assert main(COMMANDS["analyze"]) == 0
    assert Path("out/index.html").is_file() and capsys.readouterr().err == ""


def test_a_layer_without_which_the_loss_is_not_finite_counts(changed, capsys, monkeypatch):
    changed(lambda content: None)
    monkeypatch.setattr("lit_small_lm.analysis.subject.Subject.nats", nan_without_the_first)
    assert main(["analyze", "run", "--rows", "2", "--only", "removal,usefulness,profile"]) == 0
    said = capsys.readouterr().out
    assert "effective depth 1 of 2: layers whose removal alone" in said and "not finite" in said


def nan_without_the_first(self, variants, tell=None):
    """Nats of one a document; not finite without the first layer."""
    found = torch.ones(len(variants), self.questions.count, dtype=torch.float64)
    for row, variant in zip(found, variants, strict=True):
        if 0 not in variant.order:
            row.fill_(torch.nan)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_it_says_so_and_leaves_nothing(two_layers, tmp_path, snapshot, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(two_layers, "run")
    (tmp_path / "slow.py").write_text(SLOW)
    before = snapshot()
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    started = [sys.executable, "-c", f"import slow; slow.run({COMMANDS[command]!r})"]
    running = subprocess.Popen(started, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "writing\n"
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130 and said.splitlines()[-1] == "error: stopped by SIGINT"
    assert "Traceback" not in said and snapshot() == before


SLOW = """
import sys
import time

from lit_small_lm.__main__ import main
from lit_small_lm.training import run_dir


def forever(*_):
    print("writing", flush=True)
    time.sleep(60)


def run(argv):
    run_dir.write_json = forever
    sys.exit(main(argv))
"""
