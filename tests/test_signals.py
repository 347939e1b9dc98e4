"""Signals in every stretch of a run: it ends with their number, and what was finished is saved."""

import os
import signal
import time

import pytest

from lit_small_lm import signals
from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read, step_of
from lit_small_lm.data import loader
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.training.lit import LanguageModule
from tests.training.conftest import TINY

ALL = (*signals.ENDING, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def kept():
    """The handlers of the test suite; a command that is asked to end leaves its own behind."""
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


@pytest.fixture
def argv(tiny_text, tmp_path):
    options = ["--data.source.path", str(tiny_text), "--run_dir", str(tmp_path / "run")]
    return ["fit", *TINY, "--checkpoints.every_n_steps", "100", "--trainer.val_check_interval", "6", *options]


@pytest.fixture
def send(monkeypatch):
    """`send(signal.SIGTERM, "validation_step")` sends it once, when that is called (of a step: of the given one)."""

    def arm(number, name, step=None, owner=LanguageModule):
        original, sent = getattr(owner, name), []

        def sending(self, *args, **kwargs):
            if not sent and (step is None or self.global_step + 1 == step):
                sent.append(number)
                os.kill(os.getpid(), number)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, sending)

    return arm


def steps(tmp_path):
    return [step_of(file) for file in checkpoints_in(tmp_path / "run")]


@pytest.mark.parametrize("number", signals.ENDING)
def test_in_a_step_it_is_finished_and_saved(number, argv, send, tmp_path, capsys):
    send(number, "training_step", step=4)
    assert main(argv) == 128 + number
    assert steps(tmp_path) == [4]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"stopped by {number.name} after step 4; checkpoint saved; go on with: ")


def test_in_validation_that_is_finished_and_not_repeated(argv, send, tmp_path, lines_of):
    send(signal.SIGTERM, "validation_step")
    assert main(argv) == 143
    assert steps(tmp_path) == [6]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert [step for step, _ in lines_of("val/loss")] == [6, 12]
    assert [step for step, _ in lines_of("train/loss")] == list(range(1, 13))


def test_in_a_step_that_validation_follows_both_are_finished(argv, send, tmp_path, lines_of):
    send(signal.SIGTERM, "training_step", step=6)
    assert main(argv) == 143
    assert main(["fit", "--run_dir", str(tmp_path / "run"), "--resume"]) == 0
    assert [step for step, _ in lines_of("val/loss")] == [6, 12]


def test_in_the_last_step_the_run_is_finished(argv, send, tmp_path, capsys):
    send(signal.SIGTERM, "training_step", step=12)
    assert main(argv) == 0
    assert steps(tmp_path) == [12] and "go on with" not in capsys.readouterr().err


def test_in_set_up_nothing_is_left_and_nobody_sees_a_traceback(argv, send, tmp_path, capsys):
    send(signal.SIGTERM, "setup", owner=TokenData)
    assert main(argv) == 143
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "error: stopped by SIGTERM" and "Traceback" not in said
    assert not steps(tmp_path)


def test_a_user_signal_saves_and_goes_on(argv, send, tmp_path):
    send(signal.SIGUSR1, "training_step", step=4)
    assert main(argv) == 0
    assert steps(tmp_path) == [12, 4]


def test_a_second_signal_ends_at_once_whatever_the_main_thread_does(tmp_path):
    reading, child = os.pipe()[0], os.fork()
    if child == 0:
        signals.ONE = 0.05
        signals.asked.waiting = True
        signals._end_on_a_second_one(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signals.asked._ending)
        os.read(reading, 1)  # as a process that waits for another one
        os._exit(0)
    for _ in range(100):
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
    assert os.waitstatus_to_exitcode(status) == 143


def test_a_store_that_is_cut_short_is_named_and_the_last_step_saved(argv, send, tmp_path, monkeypatch, capsys):
    original = TokenData.transfer_batch_to_device
    cache = tmp_path / "cache"

    def cutting(self, batch, device, index):
        if self.trainer.global_step == 4:
            for file in cache.rglob("*train*.tokens"):
                os.truncate(file, 100)
        return original(self, batch, device, index)

    monkeypatch.setattr(TokenData, "transfer_batch_to_device", cutting)
    monkeypatch.setattr(loader, "READ_TOGETHER", 1)  # one batch at a time, however small
    assert main([*argv, "--data.cache_dir", str(cache)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: token store ") and "00000.train.tokens has 100 bytes, expected " in said
    assert steps(tmp_path) == [5]
    assert read(checkpoints_in(tmp_path / "run")[0])["lit_small_lm"]["step"] == 5


@pytest.fixture
def lines_of(tmp_path):
    from tests.training.conftest import Lines

    return lambda key: Lines(tmp_path / "run").pairs(key)
