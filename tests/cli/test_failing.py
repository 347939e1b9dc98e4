"""Errors of libraries are said in words that help."""

import socket
from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.cli.failing import explained
from lit_small_lm.cli.processes import difference, how
from lit_small_lm.errors import RunError

TRAINER = SimpleNamespace(accumulate_grad_batches=2, world_size=1, global_step=0)
DATA = SimpleNamespace(batch_size=64, seq_len=1024)


def test_a_real_want_of_memory_names_what_to_lower():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    said = str(explained(found.value, TRAINER, DATA))
    assert said.startswith("out of memory in step 1: data.batch_size 64 in 2 parts of data.seq_len 1024; 1152921504606")
    assert "were asked for" in said and "lower data.micro_batch_size" in said and len(said) < 290
    text = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a capacity of 79 GiB of which 3.10 GiB is free."
    on_gpu = torch.OutOfMemoryError(text)
    assert "; 20.00 GiB were asked for, 3.10 GiB are free" in str(explained(on_gpu, TRAINER, DATA))
    assert str(explained(MemoryError(), TRAINER, DATA)).startswith("out of memory in step 1")


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(torch.distributed.DistNetworkError) as found:
            torch.distributed.TCPStore("localhost", port, 1, True)
    assert str(explained(found.value, TRAINER, DATA)).startswith(f"MASTER_PORT {port}: another program listens there")


def test_a_loader_worker_that_died_is_named():
    killed = RuntimeError("DataLoader worker (pid 4321) is killed by signal: Killed. ")
    said = str(explained(killed, TRAINER, DATA))
    assert said.startswith(
        "data.num_workers: loader worker 4321 was killed by signal Killed (out of memory?) in step 1"
    )


def test_other_errors_stay_as_they_are():
    for error in (ValueError("x"), RunError("a process ended (out of memory?)"), RuntimeError("shapes differ")):
        assert explained(error, TRAINER, DATA) is error


def test_the_key_in_which_two_processes_differ():
    first, other = "trainer: {max_steps: 3, devices: 2}\n", "trainer: {max_steps: 4, devices: 2}\n"
    assert difference(first, other, 1).startswith("trainer.max_steps: 3 in process 0, 4 in process 1; allowed: ")
    assert how(-9) == "was killed by SIGKILL; out of memory?" and how(2) == "ended with status 2"
