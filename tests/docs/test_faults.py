"""The storm of kills in its smallest form; `make faults` has the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[2] / "benchmarks" / "faults"


@pytest.mark.slow
def test_a_killed_run_loses_and_doubles_nothing(tmp_path):
    command = [sys.executable, str(FAULTS), "kills", "--tries", "1", "--side", "ours"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tries"] == 1 and found["of"] > 200
    assert [found[key] for key in ("lost", "doubled", "torn", "wrong", "tensors_wrong")] == [0] * 5
