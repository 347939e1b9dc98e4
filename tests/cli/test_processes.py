"""Two processes of which one is at fault: both end, and the fault is the last thing said."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_small_lm.checkpoint import checkpoints_in, read
from tests.training.conftest import TINY

pytestmark = pytest.mark.slow

FAULT = """
import os, signal
from lit_small_lm.training.lit import LanguageModule

original = LanguageModule.training_step

def step(self, batch, batch_idx):
    loss = original(self, batch, batch_idx)
    if self.global_rank == 1 and self.global_step == 2:
        return loss * float("nan")
    if self.global_rank == 1 and self.global_step == 7:
        {fault}
    return loss

LanguageModule.training_step = step
"""
RAISE, STOP = 'raise ValueError("planted")', "os.kill(os.getpid(), signal.SIGSTOP)"
CASES = {
    "raises": ("ddp", RAISE, "error: process 1: ValueError in "),
    "hangs": ("FSDP2", STOP, "error: process 1 has not answered for 3 s (timeout); last heard of after step "),
}


@pytest.mark.parametrize("case", CASES)
def test_one_process_at_fault_ends_all_and_the_cause_is_said_last(case, tmp_path, tiny_text):
    """A gradient that is not finite on one process is left out by both before that."""
    strategy, fault, says = CASES[case]
    (tmp_path / "fault.py").write_text(FAULT.replace("{fault}", fault))
    options = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        strategy,
        "--timeout",
        "3" if fault == STOP else "30",
        "--guard.non_finite",
        "skip",
    ]
    files = ["--plugins", "fault.py", "--data.source.path", str(tiny_text)]
    command = [sys.executable, "-m", "lit_small_lm", "fit", *TINY, *options, *files, "--trainer.log_every_n_steps", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 1, said
    assert said[-1].startswith(says), said
    assert sum("error:" in line for line in said) == 1, said
    deadline = time.monotonic() + 30
    while alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = (tmp_path / "runs").iterdir()  # both chose the same
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/skipped_steps" in line] == [3]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 8))
    content = read(checkpoints_in(run)[0])
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    steps = {int(state["step"]) for state in content["optimizer_states"][0]["state"].values() if "step" in state}
    assert steps == {content["lit_small_lm"]["step"] - 1}  # the step that was left out is not counted by the moments


def alive(group):
    """Whether a process of a group still runs; one that only waits to be reaped does not."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                return True
    return False
