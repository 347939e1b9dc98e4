"""Two processes against one: how far the curves differ, what a process holds, and how fast they are.

    python benchmarks/distribution.py [--quick]    one JSON line, and the same as a table on standard error

Every strategy trains the same model on the same text from the command line, on CPU processes with one thread each (with
as many cores as processes, or the rate says nothing). `kept_mb` counts, by the parameters themselves, the weights,
gradients and optimizer state a process keeps; `peak_mb` is the most memory the operating system gave any of them.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS, DIM, LAYERS, SEQ_LEN = (3, 16, 2, 16) if "--quick" in sys.argv else (20, 384, 6, 256)
STRATEGIES = {
    "one process": ["--trainer.devices", "1"],
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "FSDP2": ["--trainer.devices", "2", "--trainer.strategy", "FSDP2"],
    "FSDP2, 2 replicas": [
        "--trainer.devices", "2", "--trainer.strategy", "FSDP2", "--trainer.strategy.replicas", "2",
    ],
    "FSDP2, tensor parallel": [
        "--trainer.devices", "2", "--trainer.strategy", "FSDP2", "--trainer.strategy.tensor_parallel_size", "2",
    ],
}  # fmt: skip
if "--quick" in sys.argv:
    STRATEGIES = {name: STRATEGIES[name] for name in ("one process", "FSDP2")}
MEASURED = """
import atexit, os, resource, sys
from lightning.pytorch import Callback, Trainer
from lit_small_lm.__main__ import main
from lit_small_lm.sharding import local
from lit_small_lm.training.callbacks.checkpoints import Checkpoints

original = Checkpoints.on_train_end

def on_train_end(self, trainer, module):
    optimizer = trainer.optimizers[0]
    kept = [p for group in optimizer.param_groups for p in group["params"]]
    kept += [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    size = sum(local(t.detach()).nbytes for t in kept) + sum(local(p.detach()).nbytes for p in module.net.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(os.environ["MEASURED"] + f".{trainer.global_rank}", "w") as file:
        file.write(f"{size} {peak}")
    original(self, trainer, module)

Checkpoints.on_train_end = on_train_end
sys.exit(main())
"""
"""The command line, which also writes down what each process holds at the end; gradients are as large as weights."""


def run(options: list[str], folder: Path) -> dict[str, object]:
    """Train, and return the losses, the rate of the later steps and the memory of the largest process."""
    shape = ["--model.shape.dim", str(DIM), "--model.shape.n_layers", str(LAYERS), "--model.shape.n_heads", "4"]
    command = [
        "fit", "--model", "AutoregressiveLM", *shape, "--data.tokenizer", "Bytes", "--data.seq_len", str(SEQ_LEN),
        "--data.batch_size", "4", "--data.source.path", str(folder / "text"), "--trainer.max_steps", str(STEPS),
        "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.limit_val_batches", "0",
        "--trainer.enable_progress_bar", "false", "--schedule.warmup", "2", *options,
    ]  # fmt: skip
    name = f"run{len(list(folder.iterdir()))}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEASURED": str(folder / f"{name}.memory")}
    subprocess.run(
        [sys.executable, str(folder / "measured.py"), *command, "--run_dir", str(folder / name)],
        env=environment, check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    written = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in written if "train/loss" in line]  # others hold what layers do
    rates = sorted(line["train/tokens_per_second"] for line in lines[STEPS // 3 :])
    memory = [list(map(int, file.read_text().split())) for file in folder.glob(f"{name}.memory.*")]
    return {
        "losses": [line["train/loss"] for line in lines],
        "rate": rates[len(rates) // 2],
        "kept_mb": max(size for size, _ in memory) / 2**20,
        "peak_mb": max(peak for _, peak in memory) / 2**20,
    }


def main() -> None:
    """Run every strategy, compare with one process, and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").mkdir()
        words = "the cat saw a dog near old trees while rain fell on quiet streets and we sang until morning".split()
        for page in range(60):
            text = " ".join(words[(page * 7 + i * i) % len(words)] for i in range(1500))
            (folder / "text" / f"page_{page}.txt").write_text(text)
        (folder / "measured.py").write_text(MEASURED)
        found = {strategy: run(options, folder) for strategy, options in STRATEGIES.items()}
    one = found["one process"]
    table = []
    for strategy, result in found.items():
        pairs = zip(result["losses"], one["losses"], strict=True)
        table.append({
            "strategy": strategy,
            "largest_loss_difference": max(abs(loss - wanted) for loss, wanted in pairs),
            "kept_mb": round(result["kept_mb"], 1),
            "peak_mb": round(result["peak_mb"]),
            "rate_ratio": round(result["rate"] / one["rate"], 2),
        })  # fmt: skip
        print("{strategy:24} {largest_loss_difference:.1e} {kept_mb:9} {peak_mb:6} {rate_ratio}".format(**table[-1]),
              file=sys.stderr)  # fmt: skip
    record = {"benchmark": "distribution", "device": "cpu", "processes": 2, "cores": os.cpu_count(), "steps": STEPS}
    record |= {"dim": DIM, "n_layers": LAYERS, "seq_len": SEQ_LEN, "machine": platform.machine()}
    print(json.dumps({**record, "table": table}))


if __name__ == "__main__":
    main()
