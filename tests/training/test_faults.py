"""A run stopped from outside, in a process of its own: killed, asked to stop, and one of two processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, load, newest, step_of
from lit_small_lm.cli.run_options import script
from lit_small_lm.errors import RunError

pytestmark = pytest.mark.slow


def start(argv, run_dir, seconds=120):
    """Start a `fit` and wait until its first checkpoint is there."""
    command = [sys.executable, "-m", "lit_small_lm", *argv, "--run_dir", str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_last_finished_step(number, tmp_path, tiny):
    argv = ["fit", *tiny, "--trainer.max_steps", "100000", "--checkpoints.every_n_steps", "50"]
    process = start(argv, tmp_path / "run")
    os.kill(process.pid, number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    step = step_of(checkpoints_in(tmp_path / "run")[0])
    assert output.splitlines()[-1] == (
        f"stopped by {number.name} after step {step}; checkpoint saved; go on with: "
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


def test_two_processes_choose_one_new_directory(tmp_path, tiny, cli):
    assert cli("fit", *tiny, "--trainer.devices", "2", "--trainer.strategy", "ddp").rc == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, tiny):
    assert main(["fit", *tiny, "--run_dir", str(tmp_path)]) == 0
    first, second, *_ = checkpoints_in(tmp_path)
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    (tmp_path / "checkpoints" / "last_known_good.ckpt").write_bytes(b"newer, but no checkpoint of ours")
    with pytest.warns(UserWarning, match="damaged"):
        assert newest(tmp_path)[0] == second
    for file in checkpoints_in(tmp_path):
        file.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(RunError, match="damaged"):
        newest(tmp_path)
