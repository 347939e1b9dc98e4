"""A run stopped from outside, in a process of its own: killed, asked to stop, and one of two processes; harmed data."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, load, step_of
from lit_small_lm.cli.run_options import script
from lit_small_lm.data.shards import SplitTokens

pytestmark = pytest.mark.slow


def start(argv, run_dir, seconds=120, **how):
    """Start a `fit` and wait until its first checkpoint is there."""
    command = [sys.executable, "-m", "lit_small_lm", *argv, "--run_dir", str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    deadline = time.monotonic() + seconds
    while not checkpoints_in(run_dir):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    return process


def test_killed_and_resumed_equals_uninterrupted(tmp_path, tiny, lines):
    argv = ["fit", *tiny, "--trainer.max_steps", "300", "--data.num_workers", "1", "--trainer.val_check_interval", "50"]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    process = start(argv, tmp_path / "killed")
    process.kill()
    process.wait()
    assert 3 <= step_of(checkpoints_in(tmp_path / "killed")[0]) < 300
    assert main(["fit", "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    for key in ("train/loss", "val/loss"):
        assert whole.pairs(key) == resumed.pairs(key)


def test_a_signal_to_the_whole_group_saves_the_last_finished_step(tmp_path, tiny):
    """Loader workers get it, too; a second one while the first is obeyed changes nothing."""
    argv = ["fit", *tiny, "--trainer.max_steps", "100000", "--data.num_workers", "2"]
    process = start(argv, tmp_path / "run", start_new_session=True)
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    step = step_of(checkpoints_in(tmp_path / "run")[0])
    assert output.splitlines()[-1] == (
        f"stopped by SIGTERM after step {step}; checkpoint saved; go on with: "
        f"{script('lit-small-lm')} fit --run_dir {tmp_path / 'run'} --resume"
    )
    assert load(tmp_path / "run").record["step"] == step


def test_two_processes_train_the_same_curve_as_one(tmp_path, tiny, lines, cli):
    argv = ["fit", *tiny, "--trainer.val_check_interval", "6", "--trainer.limit_val_batches", "1.0"]
    assert main([*argv, "--run_dir", str(tmp_path / "one")]) == 0
    two = cli(*argv, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_dir", tmp_path / "two")
    assert two.rc == 0, two.stderr
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one.pairs("train/loss")) == 12
    for key in ("train/loss", "val/loss", "val/bits_per_byte", "val/tokens"):
        wanted = [(step, pytest.approx(value, rel=1e-5)) for step, value in one.pairs(key)]
        assert two.pairs(key) == wanted, key


def test_changed_tokens_end_a_run_before_it_learns_from_them(tmp_path, tiny, lines, monkeypatch, capsys):
    argv = ["fit", *tiny, "--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "0"]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    file = next((tmp_path / "cache").glob("tokens/*/00000.train.tokens"))
    right, read, reads = file.read_bytes(), SplitTokens.read, itertools.count()

    def harmed(self, start, stop):
        if next(reads) == 30:
            file.write_bytes(bytes([right[0] ^ 1]) + right[1:])
        return read(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(SplitTokens, "read", harmed)
        assert main([*argv, "--run_dir", str(tmp_path / "run")]) == 1
    assert f"{file.name} is damaged: SHA-256" in capsys.readouterr().err.splitlines()[-1]
    whole, run = lines(tmp_path / "whole").pairs("train/loss"), lines(tmp_path / "run").pairs("train/loss")
    assert 0 < len(run) < 12 and run == whole[: len(run)]
    file.write_bytes(right)
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert lines(tmp_path / "run").pairs("train/loss") == whole
