"""One of two processes (DDP on gloo) raises, is killed or stopped: how long the others stay, and what is said last.

The command is started as a user starts it. A run that is still there after 45 seconds is given up.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from job import SIDES, Job, Ours, Side

GIVEN_UP, TIMEOUT, STEP = 45, 10, 8


def run(folder: Path, tries: int, sides=SIDES) -> Iterator[dict]:
    """Each fault in the second process, `tries` times on each side."""
    job = Job(folder, steps=100_000, workers=0, average=False, dropout=0.0, accumulate=1)
    for fault in ("raise", "kill", "stop"):
        for make in sides:
            yield storm(make, job, fault, tries)


def storm(make: type[Side], job: Job, fault: str, tries: int) -> dict:
    """Seconds from the fault to the end of all, exit status, and whether the last line on standard error says why."""
    found = []
    for number in range(tries):
        folder = job.folder / f"{make.__name__}_{fault}_{number}"
        found.append(faulty(make(job, folder, fault=fault, at=STEP, rank=1)))
    seconds = [one[0] for one in found]
    gone = [value for value in seconds if value is not None]
    named = sum(one[2] for one in found)
    shown = f"gone after {max(gone):.1f} s at most" if len(gone) == tries else f"there after {GIVEN_UP} s, given up"
    words = {"raise": "raises", "kill": "is killed (-9)", "stop": f"hangs (ours: --timeout {TIMEOUT})"}
    return {
        "fault": f"process 1 of 2 {words[fault]}", "side": make.name, "tries": tries, "seconds": seconds,
        "last_lines": [one[3] for one in found],
        "note": f"{shown}; exit status {', '.join(str(one[1]) for one in found)}; the last line says why {named} times",
    }  # fmt: skip


def command(side: Side, devices: int, strategy: str, *more: str, **settings) -> subprocess.Popen:
    """Start a side on several processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULTS_LEG": str(time.monotonic_ns())}
    many = ["--trainer.devices", str(devices), "--trainer.strategy", strategy]
    argv = [sys.executable, str(Path(__file__).with_name("plain.py"))]
    if isinstance(side, Ours):
        argv = [sys.executable, "-m", "lit_small_lm", *side.argv(), *many, *more]
    else:
        environment |= side.asked(devices=devices, strategy=strategy, limit_val_batches=0, **settings)
    with open(side.log, "a") as log:
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)


def faulty(side: Side) -> tuple[float | None, int | None, bool, str]:
    """Seconds to the end (None: given up), exit status, whether the cause is the last line, and that line."""
    more = ["--timeout", str(TIMEOUT)] if isinstance(side, Ours) else []
    process, begun = command(side, 2, "ddp", *more), None
    limit = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < limit:
        steps = [line[2] for line in side.lines() if line[1] == 0]
        if begun is None and steps and max(steps) >= STEP:
            begun = time.monotonic()
            limit = begun + GIVEN_UP
        time.sleep(0.05)
    ended = process.poll() is not None
    seconds = time.monotonic() - (begun or limit - 180)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    text = [line for line in side.log.read_text().splitlines() if line.strip()]
    last = text[-1] if text else ""
    words = {"raise": ("planted fault",), "kill": ("SIGKILL", "signal 9", "-9", "killed"), "stop": ("process 1",)}
    return (
        round(seconds, 1) if ended else None, process.returncode if ended else None,
        any(word in last for word in words[side.plant["fault"]]), last[:300],
    )  # fmt: skip
