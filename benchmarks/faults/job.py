"""The job that every storm is let loose on, in our command line and in plain Lightning, and the child that runs it.

Children are forked from this process, which has imported everything and trained nothing: an attempt starts in a second
or two rather than in six more, and is killed as any process is. Storms of several processes and of full disks start the
command anew.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain
import torch

import lit_small_lm as lsl
import lit_small_lm.cli.lit  # noqa: F401  (imported once, before any child)
from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import read
from lit_small_lm.data.plan import Wanted
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.nn.attention import Attention

WITNESS = Path(__file__).with_name("witness.py")
SEQ_LEN, WORDS = (
    32,
    "the cat saw a dog near old trees while rain fell on quiet streets and we sang until morning".split(),
)
STATE = ("state_dict", "optimizer_states", "current_model_state", "averaging_state")


@dataclasses.dataclass
class Job:
    """What is trained. Rows are 32 tokens, a step holds 8 of them."""

    folder: Path
    objective: str = "autoregressive"
    steps: int = 114
    workers: int = 2
    dropout: float = 0.1
    average: bool = True
    dim: int = 32
    n_layers: int = 2
    save_every: int = 5
    batch: int = 8
    accumulate: int = 2

    def __post_init__(self) -> None:
        self.text = self.folder / "text"
        if not self.text.exists():
            self.text.mkdir(parents=True)
            for page in range(41):
                words = " ".join(WORDS[(page * 7 + i * i) % len(WORDS)] for i in range(80))
                (self.text / f"page_{page}.txt").write_text(words[:255])
        self.backbone = lsl.BackboneSpec(layer=lsl.LayerSpec(mixer=Attention(dropout=self.dropout)))
        self.shape = lsl.FixedShape(dim=self.dim, n_layers=self.n_layers, n_heads=2)
        data = lsl.TokenData(TextFiles(path=str(self.text)), Bytes(), seq_len=SEQ_LEN, batch_size=self.batch)
        data.prepare_data()
        data.setup("test")
        found = data.rows("train")
        whole = found.__getitems__([Wanted(row, row) for row in range(len(found) // 8 * 8)])
        self.rows = (whole.tokens, whole.doc_ids, whole.sample_ids)
        self.specials, self.rows_of_ours = data.encoder.specials, len(found)

    def options(self) -> list[str]:
        """The job on our command line."""
        model = "AutoregressiveLM" if self.objective == "autoregressive" else "DiffusionLM"
        return [
            "--model", model, "--model.shape.dim", str(self.dim), "--model.shape.n_layers", str(self.n_layers),
            "--model.shape.n_heads", "2", "--model.backbone.layer.mixer.dropout", str(self.dropout),
            "--data.source.path", str(self.text), "--data.tokenizer", "Bytes", "--data.seq_len", str(SEQ_LEN),
            "--data.batch_size", str(self.batch), "--data.num_workers", str(self.workers), "--optim.lr", "0.003",
            "--schedule.warmup", "10", "--schedule.decay", "0.3", "--trainer.max_steps", str(self.steps),
            "--trainer.accumulate_grad_batches", str(self.accumulate), "--trainer.accelerator", "cpu",
            "--trainer.precision", "32-true", "--trainer.limit_val_batches", "2",
            "--trainer.val_check_interval", str(40 * self.accumulate), "--trainer.enable_progress_bar", "false",
            "--checkpoints.every_n_steps", str(self.save_every), *(["--ema_decay", "0.9"] if self.average else []),
        ]  # fmt: skip


class Side:
    """One way to run the job in a folder; `plant` is what the witness is told beside its file."""

    name = ""

    def __init__(self, job: Job, folder: Path, **plant: Any) -> None:
        self.job, self.folder, self.plant = job, folder, plant
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seen, self.log = folder.with_suffix(".seen"), folder.with_suffix(".log")

    def start(self, *more: str) -> "Child":
        """Begin or go on, in a child."""
        return Child(lambda: self.work(*more), self.log)

    def lines(self) -> list[list]:
        """What the witness wrote: number, rank, step, loss, rows and leg of every batch that was run."""
        found = []
        for line in self.seen.read_text().splitlines() if self.seen.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def batches(self) -> int:
        """How many lines the witness wrote."""
        return self.seen.read_bytes().count(b"\n") if self.seen.exists() else 0

    def kept(self) -> dict[tuple[int, int], list]:
        """The lines that count: of every batch and process the last one."""
        return dict(sorted(((number, rank), rest) for number, rank, *rest, _ in self.lines_that_count()))

    def lines_that_count(self) -> list[list]:
        last = {(line[0], line[1]): line for line in self.lines()}
        return list(last.values())

    def loads(self, file: Path) -> bool:
        """Whether a checkpoint is whole, as this side reads it."""
        try:
            self.read(file)
        except Exception:
            return False
        return True

    def finished(self) -> bool:
        """Whether the state after the last step is kept: there is nothing left to go on with."""
        kept = self.checkpoints()
        if not kept or not self.loads(self.newest()):
            return False
        return self.read(self.newest())["global_step"] >= self.job.steps

    def state(self) -> dict[str, Any]:
        """The newest checkpoint's weights, averages and optimizer state, by path."""
        content = torch.load(self.newest(), weights_only=True, map_location="cpu")
        return dict(flat({key: content[key] for key in STATE if key in content}))


@functools.cache
def parsed_once() -> None:
    """A request is read here, before any child, which then finds the parser's caches filled."""
    with contextlib.redirect_stdout(io.StringIO()):
        main(["fit", "--model", "AutoregressiveLM", "--trainer.max_steps", "1", "--print_config"])


class Ours(Side):
    """`lit-small-lm fit`, and `--resume` where there is a checkpoint."""

    name = "lit_small_lm"
    read = staticmethod(read)

    def argv(self) -> list[str]:
        """The arguments of the next attempt."""
        if self.checkpoints():
            return ["fit", "--run_dir", str(self.folder), "--resume", "--plugins", str(WITNESS)]
        callback = {"class_path": "Witness", "init_args": {"file": str(self.seen), **self.plant}}
        place = ["--run_dir", str(self.folder), "--plugins", str(WITNESS)]
        return ["fit", *self.job.options(), "--trainer.callbacks", json.dumps([callback]), *place]

    def start(self, *more: str) -> "Child":
        parsed_once()
        return super().start(*more)

    def work(self, *more: str) -> int:
        return main([*self.argv(), *more])

    def checkpoints_unsorted(self) -> list[Path]:
        return list((self.folder / "checkpoints").glob("step=*.ckpt"))

    def checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints_unsorted(), reverse=True)

    def newest(self) -> Path:
        return self.checkpoints()[0]

    @property
    def epoch(self) -> int:
        return self.job.rows_of_ours


class Plain(Side):
    """`Trainer.fit(ckpt_path="last")`."""

    name = "plain Lightning"

    def read(self, file: Path) -> dict[str, Any]:
        return torch.load(file, weights_only=True)

    def asked(self, keep: int = 1, **settings: Any) -> dict[str, str]:
        """What a process of its own finds in its environment; `settings` go to the Trainer."""
        held = ("objective", "steps", "workers", "dropout", "average", "save_every", "accumulate")
        job = {"folder": str(self.job.folder), **{name: getattr(self.job, name) for name in held}}
        witness = {"file": str(self.seen), **self.plant}
        asked = {"job": job, "folder": str(self.folder), "witness": witness, "keep": keep, "settings": settings}
        return {"PLAIN_JOB": json.dumps(asked)}

    def work(self, *more: str) -> int:
        from witness import Witness  # here alone: to our command line it is a plug-in, of which there is one

        return plain.train(self.job, self.folder, Witness(str(self.seen), **self.plant))

    def checkpoints_unsorted(self) -> list[Path]:
        return list(self.folder.glob("*.ckpt"))

    def checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints_unsorted(), key=lambda file: file.stat().st_mtime, reverse=True)

    def newest(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def epoch(self) -> int:
        return len(self.job.rows[0])


SIDES = (Ours, Plain)


class Child:
    """A forked process with a group of its own; what it prints is appended to `log`."""

    def __init__(self, work: Callable[[], int], log: Path) -> None:
        sys.stdout.flush()
        self.begun, self.status = time.monotonic(), None
        self.pid = os.fork()
        if not self.pid:
            self._run(work, log)

    def _run(self, work: Callable[[], int], log: Path) -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        status = 1
        try:
            status = work()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self, seconds: float = 300, until: Callable[[], bool] = lambda: False) -> bool:
        """Until it has ended, `until` is true or the time is over; whether it has ended."""
        limit = time.monotonic() + seconds
        while not self.ended() and not until() and time.monotonic() < limit:
            time.sleep(0.003)
        return self.status is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to the process, and for SIGKILL an end to its orphans."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.wait()
            self.sweep()

    def sweep(self) -> None:
        """End what is left of its group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Tensors and numbers of nested state, with their paths."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in flat(item, f"{path}/{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for number, item in enumerate(value) for leaf in flat(item, f"{path}/{number}")]
    return [(path, value)]


def unequal(state: dict[str, Any], wanted: dict[str, Any]) -> int:
    """How many tensors of a state are not bit for bit what they should be."""
    same = [
        torch.equal(state[key], value) if isinstance(value, torch.Tensor) else state[key] == value
        for key, value in wanted.items()
        if key in state
    ]
    return len(wanted) - sum(same)


def samples(order: list[int], size: int) -> tuple[int, int]:
    """Over the whole epochs of a run, each of `size` rows: rows that an epoch never saw, and rows it saw again."""
    epochs = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
    lost = sum(size - len(set(epoch)) for epoch in epochs)
    return lost, sum(len(epoch) - len(set(epoch)) for epoch in epochs)


def compare(side: Side, whole: Side) -> dict[str, int]:
    """A run that was hurt against the one that was not."""
    found, wanted = side.kept(), whole.kept()
    lost, doubled = samples([row for _, _, rows in found.values() for row in rows], side.epoch)
    return {
        "lost": lost,
        "doubled": doubled,
        "losses": len(wanted),
        "losses_wrong": sum(found.get(key, [0, None])[1] != value[1] for key, value in wanted.items()),
        "tensors_wrong": unequal(side.state(), whole.state()),
        "batches_run": len(side.lines()),
    }
