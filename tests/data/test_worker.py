"""Tokenising in several processes: in order, the same as in one, and failures are told."""

import os
import signal
import sys
import time
import types

import pytest

from lit_small_lm.data import worker
from lit_small_lm.data.encoding import Cut, TextBatch
from lit_small_lm.data.tokenizer import BPE, ByteEncoder
from lit_small_lm.errors import RunError

ENCODER = BPE(vocab_size=300).learn(iter(["the cat sat on the mat"] * 9))


def batches(count):
    for number in range(count):
        yield TextBatch([Cut("train", f"the cat {number} " * (1 + number % 7), number, True)])


def plain(found):
    return [
        (batch.cuts[0].digest, [(part.split, part.tokens.tolist(), part.starts.tolist()) for part in parts])
        for batch, parts in found
    ]


def test_several_processes_give_what_one_gives_in_order():
    alone = plain(worker.encoded_in_order(ENCODER, batches(60), 1))
    assert [digest for digest, _ in alone] == list(range(60))
    assert plain(worker.encoded_in_order(ENCODER, batches(60), 2)) == alone


def of_a_plugin_file(monkeypatch):
    """A tokenizer whose module only this process knows."""
    module = types.ModuleType("lit_small_lm_user.mine")
    monkeypatch.setitem(sys.modules, "lit_small_lm_user.mine", module)
    monkeypatch.setattr(Here, "__module__", module.__name__)
    module.Here = Here
    return Here()


def of_a_function(monkeypatch):
    """A tokenizer that cannot be written down."""

    class Inside(Here):
        pass

    return Inside()


class Here(ByteEncoder):
    """Notes in which process it works."""

    def encode(self, texts):
        self.process = os.getpid()
        return super().encode(texts)


@pytest.mark.parametrize("make", [of_a_plugin_file, of_a_function], ids=lambda make: make.__name__)
def test_a_tokenizer_that_cannot_be_sent_is_used_here(make, monkeypatch):
    encoder = make(monkeypatch)
    assert len(list(worker.encoded_in_order(encoder, batches(3), 2))) == 3
    assert encoder.process == os.getpid()


def processes(monkeypatch):
    started, real = [], worker.subprocess.Popen
    monkeypatch.setattr(worker.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    return started


def test_a_process_that_is_killed_is_reported_and_the_others_end(monkeypatch):
    started = processes(monkeypatch)
    with pytest.raises(RunError, match="ended with status -9"):
        for number, _ in enumerate(worker.encoded_in_order(ENCODER, batches(500), 2)):
            if number == 3:
                os.kill(started[0].pid, signal.SIGKILL)
    assert [process.poll() for process in started] == [-9, -9]


def test_processes_end_when_reading_stops(monkeypatch):
    started = processes(monkeypatch)
    reading = worker.encoded_in_order(ENCODER, batches(500), 2)
    next(reading)
    reading.close()
    assert all(process.poll() is not None for process in started)


def test_a_process_ends_with_the_one_that_asked():
    alone = worker._Worker()
    alone.link.send(ENCODER)
    alone.answer()
    alone.link.close()
    ends = time.monotonic() + 30
    while alone.process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    assert alone.process.poll() == 0
