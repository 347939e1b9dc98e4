"""What depth telemetry and the guard cost: the same training with and without them, and one measurement in units of a
training step.

    python benchmarks/telemetry.py [--quick]

prints one JSON line. Runs with and without are taken in turn, at the default interval; they have to end with the same
weights. Times are those of the processor, which other work on the machine disturbs least. Where the networks are deeper
the runs are short, and the cost at the default interval is taken from one measurement and one step.
"""

import functools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer

import lit_small_lm as lsl
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.training.callbacks.depth import DepthMonitor
from lit_small_lm.training.callbacks.guard import Guard
from lit_small_lm.training.callbacks.run_files import RunFiles
from lit_small_lm.training.callbacks.step_metrics import StepMetrics
from lit_small_lm.training.logger import RunLogger

INTERVAL = DepthMonitor().every_n_steps
STEPS, PAIRS = INTERVAL, 1 if "--quick" in sys.argv else 3
PAIRED = lsl.FixedShape(dim=64 if "--quick" in sys.argv else 128, n_layers=4, n_heads=4)
DEEPER = {} if "--quick" in sys.argv else {"12x256": (256, 12), "32x128": (128, 32)}
ROWS, LENGTH = (8, 32) if "--quick" in sys.argv else (8, 256)


class Timed(DepthMonitor):
    """A monitor that adds up its own processor time, for each measurement."""

    spent: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        started = time.process_time()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._add(started, self._figures is not None, first=True)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        started, busy = time.process_time(), self._figures is not None
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._add(started, busy)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        started, busy = time.process_time(), self._figures is not None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._add(started, busy)

    def _add(self, started: float, busy: bool, first: bool = False) -> None:
        if busy and first:
            self.spent = [*self.spent, 0.0]
        if busy:
            self.spent[-1] += time.process_time() - started


class Clock(Callback):
    """Processor time at the start of training and after every step."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.times = [time.process_time()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.times.append(time.process_time())


class Run(NamedTuple):
    """A finished training."""

    seconds: list[float]
    """Of each step."""
    weights: dict[str, torch.Tensor]


def train(shape: lsl.FixedShape, tried: Callback | None, steps: int, folder: Path) -> Run:
    """Train on the standard library's sources, with what is tried or without."""
    callbacks = [StepMetrics(), *([] if tried is None else [tried])]
    model, clock = lsl.AutoregressiveLM(lsl.BackboneSpec(), shape), Clock()
    data = lsl.TokenData(tokenizer=Bytes(), seq_len=LENGTH, batch_size=ROWS, num_workers=0)
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", gradient_clip_val=1.0, logger=RunLogger(), limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[*callbacks, RunFiles("", folder), clock], log_every_n_steps=10,
    )  # fmt: skip
    trainer.fit(model, data)
    seconds = [end - start for start, end in zip(clock.times, clock.times[1:], strict=False)]
    return Run(seconds, {name: value.clone() for name, value in model.net.state_dict().items()})


def pairs(folder: Path, tried: Callable[[], Callback]) -> dict[str, float]:
    """The same training with and without, in turn; the median of the ratios."""
    ratios = []
    for number in range(PAIRS):
        with_it = train(PAIRED, tried(), STEPS, folder / f"with {number}")
        without = train(PAIRED, None, STEPS, folder / f"without {number}")
        assert all(torch.equal(with_it.weights[name], value) for name, value in without.weights.items())
        ratios.append(sum(with_it.seconds) / sum(without.seconds))
    return {
        "with_by_without": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "steps": STEPS,
    }


def parts(shape: lsl.FixedShape, folder: Path) -> dict[str, float]:
    """One measurement against one step without: medians of a short run."""
    monitor = Timed(every_n_steps=4)
    seconds = train(shape, monitor, 24, folder).seconds
    plain = [value for step, value in enumerate(seconds, 1) if step % 4 and step > 1]
    step, measurement = statistics.median(plain), statistics.median(monitor.spent)
    return {
        "step_ms": round(1000 * step, 1),
        "measurement_ms": round(1000 * measurement, 1),
        "measurement_in_steps": round(measurement / step, 3),
        "percent_at_default": round(100 * measurement / step / INTERVAL, 3),
    }


def main() -> None:
    """Measure both, and print them."""
    record = {"benchmark": "telemetry", "every_n_steps": INTERVAL, "measured_rows": DepthMonitor().rows}
    record |= {"rows": ROWS, "seq_len": LENGTH}
    with tempfile.TemporaryDirectory() as folder:
        shapes = {f"{PAIRED.n_layers}x{PAIRED.dim}": PAIRED}
        shapes |= {name: lsl.FixedShape(dim=d, n_layers=n, n_heads=4) for name, (d, n) in DEEPER.items()}
        record |= {name: parts(shape, Path(folder) / name) for name, shape in shapes.items()}
        record["pairs"] = pairs(Path(folder) / "depth", DepthMonitor) | {"measurements": 1 + STEPS // INTERVAL}
        for name, sigmas in (("guard", None), ("guard_spikes", 6.0)):
            record[name] = pairs(Path(folder) / name, functools.partial(Guard, spike_sigmas=sigmas))
    record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
