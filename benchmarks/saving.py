"""What a checkpoint costs the training that it interrupts: saved beside it, and while it waits.

    python benchmarks/saving.py [--quick]

prints one JSON line. The same training runs both ways and without checkpoints, in turn. The stall is the time for which
the training thread is kept by a save; the writer's is the processor time of what writes, the most that training can
lose to it where no core is free. Both together, over the steps of the default interval, are the percentage. Memory is
what the process took at most from its first step on, less that of the training without checkpoints.
"""

import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer

import lit_small_lm as lsl
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.training import saving
from lit_small_lm.training.callbacks.checkpoints import Checkpoints

QUICK = "--quick" in sys.argv
INTERVAL = Checkpoints().every_n_steps
EVERY, SAVES, ROUNDS = (4, 2, 1) if QUICK else (5, 8, 2)
SHAPE = lsl.FixedShape(dim=32, n_layers=1, n_heads=2) if QUICK else lsl.FixedShape(dim=320, n_layers=5, n_heads=5)
ROWS, LENGTH = (4, 32) if QUICK else (4, 64)
WAYS = ("none", "blocking", "background")


class Clock(Callback):
    """When every step was done, and the memory of the whole."""

    def on_train_start(self, trainer, pl_module) -> None:
        forget_peak()
        self.first = peak()
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer, pl_module) -> None:
        self.peak = peak() - self.first


class Timed(Checkpoints):
    """Checkpoints that note for how long they keep the training thread."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        began = time.perf_counter()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step % EVERY == 0:
            self.stalls = [*getattr(self, "stalls", []), time.perf_counter() - began]


class Run(NamedTuple):
    """A finished training."""

    steps: list[float]
    """Seconds of each step, saves included."""
    stalls: list[float]
    """Seconds for which a save kept it, each."""
    writer: list[float]
    """Processor seconds of what wrote, each."""
    peak: int
    """Bytes of memory that training took at most."""
    saved: int
    """Bytes of a checkpoint."""


def forget_peak() -> None:
    """From here on the highest memory is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The highest memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def train(way: str, folder: Path) -> Run:
    """Train on the standard library's sources."""
    gc.collect()  # the training before
    model, clock, writer = lsl.AutoregressiveLM(lsl.BackboneSpec(), SHAPE), Clock(), []
    data = lsl.TokenData(tokenizer=Bytes(), seq_len=LENGTH, batch_size=ROWS, num_workers=0)
    timed = [] if way == "none" else [Timed(EVERY, keep=2, saving=way)]
    for callback in timed:
        callback.run_dir = folder
    trainer = Trainer(
        max_steps=EVERY * SAVES + 1, accelerator="cpu", logger=False, limit_val_batches=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[*timed, clock],
    )  # fmt: skip

    def write(content, path) -> None:
        began = time.thread_time()
        original(content, path)
        writer.append(time.thread_time() - began)

    original, saving.write = saving.write, write
    try:
        trainer.fit(model, data)
    finally:
        saving.write = original
    steps = [end - start for start, end in zip(clock.times, clock.times[1:], strict=False)]
    files = list((folder / "checkpoints").glob("*.ckpt"))
    stalls = [stall for callback in timed for stall in callback.stalls]
    return Run(steps, stalls, writer, clock.peak, files[0].stat().st_size if files else 0)


def main() -> None:
    """Train in all three ways, in turn, and print what saving adds."""
    rounds = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        train("none", Path(folder) / "first")  # so that what is loaded once counts for none
        for number in range(ROUNDS):
            rounds.append({way: train(way, Path(folder) / f"{way} {number}") for way in WAYS})
    step = statistics.median(second for found in rounds for second in found["none"].steps)
    size = rounds[0]["blocking"].saved
    record = {
        "benchmark": "saving", "checkpoint_mb": round(size / 1e6, 1), "step_ms": round(1000 * step, 1),
        "saves": SAVES * ROUNDS, "every_n_steps": INTERVAL,
    }  # fmt: skip
    for way in WAYS[1:]:
        stalls = sorted(stall for found in rounds for stall in found[way].stalls)
        stall, writer = statistics.median(stalls), statistics.median(t for found in rounds for t in found[way].writer)
        extra = statistics.median((found[way].peak - found["none"].peak) / size for found in rounds)
        lost = stall + (writer if way == "background" else 0)
        record[way] = {
            "stall_ms": round(1000 * stall, 1),
            "stall_ms_lowest": round(1000 * stalls[0], 1),
            "stall_ms_highest": round(1000 * stalls[-1], 1),
            "writer_ms": round(1000 * writer, 1),
            "percent_at_default": round(100 * lost / step / INTERVAL, 3),
            "memory_in_checkpoints": round(extra, 2),
        }
    record["background_by_blocking"] = round(record["background"]["stall_ms"] / record["blocking"]["stall_ms"], 2)
    record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
