"""A disk that fills up during a save: a small file system in memory, in a name space of its own.

Skipped where the system does not let a user mount one.
"""

import os
import subprocess
import sys
from pathlib import Path

from job import SIDES, Job, Ours, Side

SCRIPT = """
mount -t tmpfs -o size=2m none "$1" && mounted="$1" && kept="$2" && shift 2 && "$@"
status=$?
cp -r "$mounted"/run/. "$kept"
exit $status
"""


def run(folder: Path, tries: int, sides=SIDES) -> list[dict]:
    """One full disk on each side."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return []
    job = Job(folder, steps=400, workers=0, average=False, accumulate=1)
    return [storm(make(job, folder / make.__name__)) for make in sides]


def storm(side: Side) -> dict:
    """Train into a file system of two megabytes; copy out what is there in the end."""
    mounted = side.folder.with_name(f"{side.folder.name}_disk")
    mounted.mkdir()
    kept, side.folder = side.folder, mounted / "run"
    if isinstance(side, Ours):
        argv, asked = ["-m", "lit_small_lm", *side.argv(), "--checkpoints.keep", "0"], {}
    else:
        argv, asked = [str(Path(__file__).with_name("plain.py"))], side.asked(keep=-1)
    with open(side.log, "w") as log:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(mounted), str(kept), sys.executable, *argv],
            env={**os.environ, **asked}, stdout=subprocess.DEVNULL, stderr=log, timeout=300,
        )  # fmt: skip
    side.folder = kept
    whole = sum(side.loads(file) for file in side.checkpoints())
    lines = [line for line in side.log.read_text().splitlines() if line.strip()]
    stumps = len(side.checkpoints()) - whole
    return {
        "fault": "disk full during a save", "side": side.name, "tries": 1, "torn": stumps, "wrong": None,
        "last_line": lines[-1][:300] if lines else "", "lines": len(lines),
        "note": f"exit status {done.returncode}, {len(lines)} lines on standard error; {whole} checkpoints load, "
        f"{stumps} do not",
    }  # fmt: skip
