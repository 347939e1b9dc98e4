"""Every example runs as it stands; every benchmark in its quick form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = {"01_train_tiny": lambda text: [str(text), "2"]}


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, tiny_text):
    arguments = ARGUMENTS.get(example.stem, lambda text: [])(tiny_text)
    command = [sys.executable, str(example), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_prints_one_record(benchmark, tmp_path):
    command = [sys.executable, str(benchmark), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["benchmark"] == benchmark.stem
