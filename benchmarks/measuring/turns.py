"""Processes that train in turn: while one takes its steps all others wait, so that what else the machine does falls on
all alike, and each step has its pair within seconds.

A peer is told to go by a line and answers with what its steps took. Peak memory is what the system says of the process
when it has ended.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

VARIABLE = "BENCHMARK_TURNS"
"""Holds what a peer reads from and writes to, and how many steps a turn has."""
ALLOCATORS = {"kept": {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}, "default": {}}
"""Environments of glibc's allocator: large buffers are kept for the next step, or unmapped and mapped again."""
WARM_TURNS = 2
"""Turns that are not counted: compilation, the optimizer's state and the first measurement of depth come with them."""


class Turns:
    """The side of a peer."""

    def __init__(self) -> None:
        reads, writes, self._steps = map(int, os.environ[VARIABLE].split(","))
        self._read, self._write = os.fdopen(reads), os.fdopen(writes, "w", buffering=1)
        self._left, self._began = 0, (0.0, 0.0)

    def ready(self, **settings: object) -> None:
        """Say what is trained and the processor time since the process began, and wait for the first turn."""
        self._tell({**settings, "start_up": time.process_time()})
        self._wait()

    def step(self) -> None:
        """A step is done: the last one of a turn is told, and the next turn is waited for."""
        self._left -= 1
        if self._left == 0:
            wall, processor = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
            self._tell({"wall": wall / self._steps, "processor": processor / self._steps})
            self._wait()

    def _tell(self, content: Mapping[str, object]) -> None:
        self._write.write(json.dumps(content) + "\n")

    def _wait(self) -> None:
        self._read.readline()  # nothing, where there is no further turn: what is left to do is to end
        self._left, self._began = self._steps, (time.perf_counter(), time.process_time())


class Seconds(NamedTuple):
    """What a step took."""

    wall: float
    processor: float
    """Of the process, over all its threads."""


class Outcome(NamedTuple):
    """What is known of a peer."""

    settings: dict[str, object]
    """What it said it trains."""
    first: Seconds
    """Steps of the first turn."""
    steps: list[Seconds]
    """The mean step of every counted turn."""
    peak_mb: float
    """The most memory it has held, in MB of 10^6 bytes."""


class Running:
    """A peer that has been started."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], steps: int) -> None:
        (reads, go), (told, writes) = os.pipe(), os.pipe()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (it is held as long as the peer)
        self.name = name
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment, VARIABLE: f"{reads},{writes},{steps}"},
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=(reads, writes),
        )
        os.close(reads)
        os.close(writes)
        self._go, self._told = os.fdopen(go, "w", buffering=1), os.fdopen(told)
        self.settings = self._hear()

    def turn(self) -> Seconds:
        """Let it take its steps."""
        self._go.write("go\n")
        return Seconds(**self._hear())

    def held_mb(self) -> float:
        """The memory it holds, in MB of 10^6 bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def end(self) -> float:
        """Let it end; the most memory it has held."""
        self._go.close()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise RuntimeError(self._failed())
        return usage.ru_maxrss * 1024 / 1e6

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def _hear(self) -> dict:
        line = self._told.readline()
        if not line:
            raise RuntimeError(self._failed())
        return json.loads(line)

    def _failed(self) -> str:
        self._errors.seek(0)
        return f"{self.name}: {self._errors.read().decode(errors='replace')[-2000:]}"


def race(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], turns: int, steps: int
) -> dict[str, Outcome]:
    """Every peer's steps, taken in turn; every second round goes through them backwards.

    Args:
        commands: of each peer; `Turns` is its side, and it has to take (WARM_TURNS + turns) * steps steps.
        environment: what theirs has beside this process's.
        turns: that are counted.
        steps: of a turn.

    Raises:
        RuntimeError: a peer failed; with the end of what it wrote.
    """
    running: list[Running] = []
    try:
        warm: dict[str, Seconds] = {}
        for name, command in commands.items():
            running.append(Running(name, command, environment, steps))
            warm[name] = [running[-1].turn() for _ in range(WARM_TURNS)][0]
        taken: dict[str, list[Seconds]] = {name: [] for name in commands}
        for number in range(turns):
            for peer in running[:: -1 if number % 2 else 1]:
                taken[peer.name].append(peer.turn())
        return {peer.name: Outcome(peer.settings, warm[peer.name], taken[peer.name], peer.end()) for peer in running}
    finally:
        for peer in running:
            peer.kill()


def compared(steps: Sequence[Seconds], unit: Sequence[Seconds], clock: str) -> dict[str, float]:
    """How often one peer's step goes into another's, turn by turn: the median, and the quartiles as the spread; and how
    many milliseconds it takes more."""
    pairs = [(getattr(own, clock), getattr(theirs, clock)) for own, theirs in zip(steps, unit, strict=True)]
    found = [theirs / own for own, theirs in pairs]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    more = 1000 * statistics.median(own - theirs for own, theirs in pairs)
    return {"ratio": round(middle, 3), "lower": round(low, 3), "upper": round(high, 3), "ms_more": round(more, 2)}
