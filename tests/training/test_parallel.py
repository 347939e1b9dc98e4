"""Several processes train the curve of one, and their checkpoints are those of one, whoever goes on with them.

Gloo processes on the CPU, started as a user types it. One process and four differ in the order of float32 sums alone:
1e-5 of a loss or norm after twelve steps at a large learning rate (measured: 4e-7).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoint_name, checkpoints_in, load, read

pytestmark = pytest.mark.slow
SMALL = [
    "--model", "AutoregressiveLM", "--model.shape.dim", "16", "--model.shape.n_layers", "2", "--model.shape.n_heads",
    "4", "--model.shape.n_kv_heads", "2", "--model.backbone.layer.canon_at", "ABCD", "--data.tokenizer", "Bytes",
    "--data.seq_len", "16", "--data.batch_size", "8", "--trainer.max_steps", "12", "--trainer.accelerator", "cpu",
    "--trainer.precision", "32-true", "--trainer.val_check_interval", "12", "--trainer.limit_val_batches", "1.0",
    "--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "0.5",
    "--trainer.enable_progress_bar", "false", "--checkpoints.every_n_steps", "4", "--checkpoints.keep", "0",
    "--optim.lr", "0.01",
]  # fmt: skip
TWO_STREAMS = '''
"""Two residual streams, one for each branch; the carry is a tuple."""

from dataclasses import dataclass

from torch import nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import NormScheme


@dataclass(frozen=True, kw_only=True)
class TwoStreams(NormScheme):
    """Mixers write to one stream, FFNs to the other; both read the sum."""

    def open(self, dim):
        return Open()

    def build(self, site):
        return Path(site.dim, int(site.place == "ffn"))

    def close(self, dim):
        return Close(dim)


class Open(nn.Module):
    def forward(self, x):
        return x, x


class Path(nn.Module):
    def __init__(self, dim, stream):
        super().__init__()
        self.norm, self.stream = RMSNorm().build(dim), stream

    def forward(self, carry, branch):
        out = branch(self.norm(sum(carry)))
        return tuple(x + out if i == self.stream else x for i, x in enumerate(carry))


class Close(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = RMSNorm().build(dim)

    def forward(self, carry):
        return self.norm(sum(carry))
'''


def strategy(devices, tensor_parallel=1, replicas=1):
    name, sizes = "--trainer.strategy.", {"tensor_parallel_size": tensor_parallel, "replicas": replicas}
    options = [word for key, size in sizes.items() if size > 1 for word in (name + key, str(size))]
    return ["--trainer.devices", str(devices), "--trainer.strategy", "FSDP2", *options]


class Runs:
    """Runs of one model: `runs(name, options)` trains one in a process of its own and keeps it under its name."""

    def __init__(self, folder: Path, text: Path) -> None:
        self.folder, self.text = folder, text
        (folder / "two_streams.py").write_text(TWO_STREAMS)

    def argv(self, name, *options):
        return ["fit", *SMALL, "--data.source.path", str(self.text), *options, "--run_dir", str(self.folder / name)]

    def two_streams(self):
        return ["--plugins", str(self.folder / "two_streams.py"), "--model.backbone.norm", "TwoStreams"]

    def __call__(self, name, argv=None, launcher=(sys.executable,)):
        done = subprocess.run(
            [*launcher, "-m", "lit_small_lm", *argv], cwd=self.folder, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr[-3000:]
        noise = ("view tensor", "_redistribute.py")  # what torch says to those who write parallel code
        assert not any(text in done.stderr for text in noise), done.stderr
        return self.folder / name

    def from_step(self, name, checkpoint, *options):
        """Go on from another run's state."""
        return self(name, ["fit", "--branch_from", str(checkpoint), *options, "--run_dir", str(self.folder / name)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_text):
    return Runs(tmp_path_factory.mktemp("parallel"), tiny_text)


@pytest.fixture(scope="module")
def one(runs):
    """One process, the curve to follow."""
    assert main(runs.argv("one")) == 0
    return runs.folder / "one"


@pytest.fixture(scope="module")
def one_of_two_streams(runs):
    assert main(runs.argv("one_of_two_streams", *runs.two_streams())) == 0
    return runs.folder / "one_of_two_streams"


@pytest.fixture(scope="module")
def fsdp(runs):
    return runs("fsdp", runs.argv("fsdp", *strategy(2)))


def assert_same_curve(run_dir, wanted_dir, lines, first=1):
    found, wanted = lines(run_dir), lines(wanted_dir)
    for key in ("train/loss", "train/grad_norm", "train/lr", "tokens", "val/loss", "val/bits_per_byte", "val/tokens"):
        expected = [(step, pytest.approx(value, rel=1e-5)) for step, value in wanted.pairs(key) if step >= first]
        assert found.pairs(key) == expected, key
    assert len([step for step, _ in found.pairs("train/loss")]) == 13 - first


def assert_same_state(run_dir, wanted_dir):
    """Weights and the optimizer's state, by name and number, as one process writes them."""
    found, wanted = (read(checkpoints_in(folder)[0]) for folder in (run_dir, wanted_dir))
    assert found["state_dict"].keys() == wanted["state_dict"].keys()
    for name, value in wanted["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-3, atol=1e-5)
    (found,), (wanted,) = found["optimizer_states"], wanted["optimizer_states"]
    assert [group["params"] for group in found["param_groups"]] == [group["params"] for group in wanted["param_groups"]]
    assert found["state"].keys() == wanted["state"].keys()
    for number, state in wanted["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(found["state"][number][key], value, rtol=1e-3, atol=1e-6)


def test_two_processes_follow_one(fsdp, one, lines):
    assert_same_curve(fsdp, one, lines)
    assert_same_state(fsdp, one)


def test_one_process_goes_on_with_a_checkpoint_of_two(runs, fsdp, one, lines, capsys):
    """Curve, evaluation and text from one file, wherever it was written."""
    state, folder = fsdp / "checkpoints" / checkpoint_name(4), runs.folder / "two_to_one"
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert main(["fit", "--branch_from", str(state), *alone, "--run_dir", str(folder)]) == 0
    assert_same_curve(folder, one, lines, first=5)
    assert main(["test", "--run_dir", str(fsdp), *alone]) == 0
    assert main(["test", "--run_dir", str(one)]) == 0
    scores = [json.loads((run / "test.json").read_text()) for run in (fsdp, one)]
    assert scores[0]["nats_per_token"] == pytest.approx(scores[1]["nats_per_token"], rel=1e-5)
    assert main(["generate", str(fsdp), "--prompt", "a", "--max_new_tokens", "3"]) == 0
    assert len(load(fsdp).net.state_dict()) == len(load(one).net.state_dict())


def test_tensor_parallel_goes_on_with_a_checkpoint_of_one(runs, one, lines):
    state = one / "checkpoints" / checkpoint_name(4)
    tensor = runs.from_step("tensor", state, *strategy(2, tensor_parallel=2), "--activation_checkpointing", "layers")
    assert_same_curve(tensor, one, lines, first=5)
    assert_same_state(tensor, one)


def test_four_processes_in_both_ways_go_on_with_a_checkpoint_of_two(runs, fsdp, one, lines):
    four = runs.from_step("four", fsdp / "checkpoints" / checkpoint_name(4), *strategy(4, tensor_parallel=2))
    assert_same_curve(four, one, lines, first=5)
    assert_same_state(four, one)


def test_hybrid_sharding_and_a_carry_of_two_streams(runs, one_of_two_streams, lines):
    hybrid = runs("hybrid", runs.argv("hybrid", *runs.two_streams(), *strategy(4, replicas=2)))
    assert_same_curve(hybrid, one_of_two_streams, lines)
    assert_same_state(hybrid, one_of_two_streams)


def test_tensor_parallel_of_plain_ffn_with_biases(runs, lines):
    """GPT-2's parts, from initial weights that are those of one process; evaluation counts no token twice."""
    family = ["--model.backbone", "configs/families/gpt2.yaml"]
    assert main(runs.argv("gpt2", *family)) == 0
    tensor = runs("gpt2_tensor", runs.argv("gpt2_tensor", *family, *strategy(2, tensor_parallel=2)))
    assert_same_curve(tensor, runs.folder / "gpt2", lines)
    assert_same_state(tensor, runs.folder / "gpt2")


def test_diffusion_has_the_noise_of_one_process(runs, lines):
    """Rows of unequal numbers of tokens, held-out bounds, and mask rates that are looked for on all processes."""
    blocks = ["--model", "DiffusionLM", "--model.objective", "BlockDiffusion", "--trainer.val_check_interval", "6"]
    blocks += ["--trainer.callbacks", "ClippedNoiseSearch", "--data.packing", "best_fit"]
    assert main(runs.argv("diffusion", *blocks)) == 0
    both = runs("diffusion_fsdp", runs.argv("diffusion_fsdp", *blocks, *strategy(2)))
    assert_same_curve(both, runs.folder / "diffusion", lines)
    found, wanted = lines(both), lines(runs.folder / "diffusion")
    for key in ("val/loss_bound", "val/bits_per_byte_bound_standard_error", "val/loss_draw_error"):
        assert len(wanted.pairs(key)) == 4
        assert found.pairs(key) == [(step, pytest.approx(value, rel=1e-4)) for step, value in wanted.pairs(key)], key


def test_torchrun_in_bfloat16(runs, one, lines):
    options = [*strategy(2), "--trainer.precision", "bf16-mixed", "--activation_checkpointing", "layers"]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    found = lines(runs("torchrun", runs.argv("torchrun", *options), torchrun)).pairs("train/loss")
    assert found == [(step, pytest.approx(value, rel=0.02)) for step, value in lines(one).pairs("train/loss")]


def test_an_error_after_the_start_is_said_once(runs, cli):
    done = cli(*runs.argv("odd", *strategy(2)), "--data.batch_size", "6")
    assert done.rc == 2
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        "error: data.batch_size: 6 is not divisible by 2 processes x 2 accumulated batches; allowed: multiples of 4"
    ]
    assert not (runs.folder / "odd").exists()


# ---------------------------------------------------------------------------------------------------------------- SLURM
SRUN = """#!/bin/bash
# Two tasks on this machine, with the variables that SLURM sets; the highest status of a task is its own.
while [[ $1 == -* ]]; do shift; done
echo "$*" >> srun.log
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
    echo $! > task.$task.pid
done
status=0
for task in 0 1; do wait $(cat task.$task.pid); code=$?; (( code > status )) && status=$code; done
exit $status
"""
SCONTROL = '#!/bin/bash\necho "$*" >> scontrol.log\n'


def test_slurm_requeues_and_goes_on(runs, one, lines, tmp_path):
    """The time limit's signal, a checkpoint, a requeue, and the next start goes on to the curve of one process."""
    script = Path(__file__).parents[2] / "examples" / "slurm.sh"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "lit-small-lm").write_text(f'#!/bin/bash\nexec {sys.executable} -m lit_small_lm "$@"\n')
    (tmp_path / "lit-small-lm").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1",
        "SLURM_JOB_ID": "4321", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_RESTART_COUNT": "0",
    }  # fmt: skip
    options = runs.argv("slurm", *strategy(2))[1:-2]
    job = subprocess.Popen(["bash", str(script), *options], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    run_dir, deadline = tmp_path / "runs" / "mine", time.monotonic() + 120
    while not checkpoints_in(run_dir):
        assert job.poll() is None, job.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for task in (0, 1):
        os.kill(int((tmp_path / f"task.{task}.pid").read_text()), signal.SIGTERM)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 143, said
    assert said.count("stopped by SIGTERM") == 1
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4321\n"
    again = subprocess.run(["bash", str(script), *options], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "--resume" in (tmp_path / "srun.log").read_text().splitlines()[1]
    assert_same_curve(run_dir, one, lines)
