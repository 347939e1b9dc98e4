"""Every norm scheme, sharded over two processes, takes the steps of one: a next-token and a diffusion step."""

import json
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("scheme_pair.py")
FAMILIES = runpy.run_path(str(Path(__file__).parents[1] / "norm_schemes.py"))["FAMILIES"]


@pytest.mark.slow  # one pair of processes for all of them
def test_sharded_every_scheme_trains_as_whole():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    argv = [[sys.executable, str(SCRIPT), str(rank), port] for rank in (0, 1)]
    pair = [subprocess.Popen(a, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for a in argv]
    said = [process.communicate(timeout=600) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    found = [json.loads(line) for line in said[0][0].splitlines()]
    assert [line["family"] for line in found] == [name for name in FAMILIES]
    assert [line for line in found if not line["off"] < 1e-9] == []  # float64; sums are taken in another order
