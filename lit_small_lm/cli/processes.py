"""Several processes of one run: the same request, one time-out, and one of them says why all end.

A process that fails writes so to the store that all of them met at, before its connections close; the others, whose
errors are only that they lost it, read that and stay silent. A process that was killed or hangs cannot write: every one
counts up a number of its own in the store while it lives, and the first one watches those of the others.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import yaml
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import distributed

from lit_small_lm.cli.complaint import complain, told
from lit_small_lm.cli.failing import explained
from lit_small_lm.cli.run_options import flat
from lit_small_lm.errors import RequestError, RunError

LOST = ("gloo", "closed by peer", "Connection reset", "NCCL", "Broken pipe", "recv operation", "send operation")
"""Words in errors that say no more than that another process is gone."""
PATIENCE = 3.0
"""Seconds that a process which lost another one waits to hear why."""
FIRST = "LIT_SMALL_LM_FIRST_PROCESS"
"""Environment variable: the process that started the others of its machine."""
GRACE = 15.0
"""Seconds that the first process has to end by itself once another one has failed."""


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine, and ends with them; Lightning's kills the one that would say why."""

    def __init__(self, launcher: _SubprocessScriptLauncher) -> None:
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self.fallen = ""
        """The first process that failed, and how."""
        self.leaving = False
        """Whether this process is about to end by itself, and may have something to save."""

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[FIRST] = str(os.getpid())
            self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True, name="child processes").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _watch(self) -> None:
        while not self.fallen:
            time.sleep(0.2)
            for number, process in enumerate(self.procs, 1):
                if process.poll():
                    self.fallen = f"process {number} {how(process.returncode)}"
        time.sleep(GRACE)
        if self.leaving:
            return
        complain(RunError(self.fallen), 0, wait=False)
        self.end()
        os._exit(1)

    def end(self) -> None:
        """End the processes it started; those that do not listen are killed."""
        for process in self.procs:
            process.terminate()
        for process in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()


def own_launcher(trainer: Trainer) -> None:
    """Give a trainer that starts processes this module's launcher."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = Launcher(launcher)


def how(returncode: int) -> str:
    """How a process ended."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    number = signal.Signals(-returncode)
    why = "; out of memory?" if number == signal.SIGKILL else ""
    return f"was killed by {number.name}{why}"


class Processes(Callback):
    """Watches over the processes of a run; nothing where there is one.

    Args:
        config: the resolved configuration, as YAML.
        timeout: seconds that the processes wait for one of them.
    """

    def __init__(self, config: str, timeout: float) -> None:
        self.config, self.timeout = config, timeout
        self.step = 0
        self._beats: _Beats | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise RequestError if the processes were started with different requests."""
        if trainer.world_size == 1:
            return
        configs: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(configs, self.config)
        for number, other in enumerate(configs):
            if other != configs[0]:
                raise RequestError(difference(configs[0], other, number))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        for group in list(distributed.distributed_c10d._world.pg_map):  # Lightning has none but half an hour
            distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout), group)
        self._beats = _Beats(self, trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say why the run fails, if this process is the first to know."""
        if isinstance(trainer.strategy.launcher, Launcher):
            trainer.strategy.launcher.leaving = True
        if trainer.world_size > 1 and isinstance(exception, Exception) and distributed.is_initialized():
            self._claim(explained(exception, trainer, trainer.datamodule), trainer)
        self._stop()

    def _stop(self) -> None:
        if self._beats is not None:
            self._beats.stopped.set()

    def _claim(self, error: Exception, trainer: Trainer) -> None:
        rank, alike = trainer.global_rank, isinstance(error, (RequestError, RunError))
        lost = not alike and isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
        if lost:
            error = RunError(self._missing(trainer))
        elif alike and rank:
            time.sleep(1)  # the first one says what all say
        if told.cause or not first_to_say(rank):
            told.cause = True
        else:
            complain(error, 0 if lost else rank, wait=False)

    def _missing(self, trainer: Trainer) -> str:
        """Which process is gone or does not answer, as far as it can be known."""
        launcher, deadline = trainer.strategy.launcher, time.monotonic() + PATIENCE + (trainer.global_rank > 0)
        while time.monotonic() < deadline and not somebody_said(default=trainer.global_rank > 0):
            if isinstance(launcher, Launcher) and launcher.fallen:
                return f"{launcher.fallen} after step {self.step}"
            time.sleep(0.1)
        silent = self._beats.silent(PATIENCE) if self._beats else None
        if silent is None and self._beats and trainer.global_rank and self._beats.store_is_gone:
            silent = 0, self.step
        if silent is not None:
            return f"process {silent[0]} does not answer (killed, or stuck); last heard of after step {silent[1]}"
        return f"the processes waited for each other for {self.timeout:g} s (timeout) after step {self.step}"


class _Beats:
    """A number in the store that goes up while this process lives, and a look at those of others."""

    def __init__(self, owner: Processes, trainer: Trainer) -> None:
        self.owner, self.trainer, self.rank = owner, trainer, trainer.global_rank
        self.others = [0] if self.rank else list(range(1, trainer.world_size))
        self.stopped, self.seen = threading.Event(), {}
        self.store_is_gone = False
        self.store = _store().clone()  # a client of its own: calls of others may wait
        self._beat(0)
        trainer.strategy.barrier("beats")
        threading.Thread(target=self._run, daemon=True, name="beats").start()

    def _beat(self, number: int) -> None:
        self.store.set(f"beat {self.rank}", f"{number} {self.owner.step}")

    def _run(self) -> None:
        number, every = 0, min(0.5, self.owner.timeout / 5)
        while not self.stopped.wait(every):
            number += 1
            try:
                self._beat(number)
                found = self.store.multi_get([f"beat {other}" for other in self.others])
            except Exception:  # where the first process keeps it, that is gone
                self.store_is_gone, found = True, []
            for other, value in zip(self.others, found, strict=False):
                if self.seen.get(other, (None, 0.0))[0] != value:
                    self.seen[other] = (value, time.monotonic())
            silent = self.silent(self.owner.timeout)
            if silent is not None and not self.stopped.is_set():
                self._give_up(*silent)

    def silent(self, seconds: float) -> tuple[int, int] | None:
        """A process that has not been heard for so long, and its last finished step."""
        for other, (value, since) in self.seen.items():
            if time.monotonic() - since > seconds:
                return other, int(value.split()[1])
        return None

    def _give_up(self, other: int, step: int) -> None:
        if first_to_say(self.rank):
            text = f"process {other} has not answered for {self.owner.timeout:g} s (timeout); last heard of after step "
            complain(RunError(f"{text}{step}"), 0, wait=False)
        launcher = self.trainer.strategy.launcher
        if isinstance(launcher, Launcher):
            launcher.end()
        if os.environ.get(FIRST) == str(os.getppid()):  # stuck, it would stay when all others are gone
            os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def first_to_say(rank: int) -> bool:
    """Whether no process has said yet why the run ends; this one does then. True if the store is gone."""
    try:
        return _store().compare_set("cause", "", str(rank)) == str(rank).encode()
    except Exception:
        return True


def somebody_said(default: bool) -> bool:
    """Whether a process has said why the run ends; `default` if the store is gone."""
    try:
        return _store().check(["cause"])
    except Exception:
        return default


def difference(mine: str, other: str, number: int) -> str:
    """The first key in which two processes' configurations differ, in words."""
    here, there = flat(yaml.safe_load(mine)), flat(yaml.safe_load(other))
    key = next(key for key in {**here, **there} if here.get(key) != there.get(key))
    return (
        f"{key}: {here.get(key)!r} in process 0, {there.get(key)!r} in process {number}; allowed: the same "
        "configuration in every process"
    )
