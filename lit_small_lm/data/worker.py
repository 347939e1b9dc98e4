"""Tokenising on all cores: processes that get texts and give back arrays.

They are started as programs of their own, not forked, so threads of this process (the tokenizers library's, PyTorch's)
cannot lock them up, and a script without a `__main__` guard is not run again. A worker ends when its connection does.
Processes rather than the library's own threads, because the ids of every text pass through Python objects under one
lock, and because threads wait for each other at the library's cache of words.
"""

import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from pickle import PicklingError
from typing import Any

from lit_small_lm.data.encoding import Encoded, TextBatch, encoded
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.plugin import Encoder

AHEAD = 2
"""Batches for each process that wait or are done, at most."""


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def encoded_in_order(
    encoder: Encoder, batches: Iterable[TextBatch], processes: int
) -> Iterator[tuple[TextBatch, list[Encoded]]]:
    """Every batch with its tokens, in order.

    Args:
        encoder: the tokenizer.
        batches: texts.
        processes: how many work at the same time; with less than two, or with a tokenizer that cannot be sent to
            another process (a plug-in file's), this one does it alone.

    Raises:
        RunError: a process ended, or the tokenizer failed.
    """
    workers = _started(encoder, processes) if processes > 1 else []
    if not workers:
        for batch in batches:
            yield batch, encoded(encoder, batch.cuts)
        return
    threads = ThreadPoolExecutor(len(workers))
    try:
        yield from _shared_out(workers, threads, batches)
    finally:
        for worker in workers:
            worker.process.kill()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def _shared_out(
    workers: list["_Worker"], threads: ThreadPoolExecutor, batches: Iterable[TextBatch]
) -> Iterator[tuple[TextBatch, list[Encoded]]]:
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    waiting: deque[tuple[TextBatch, Future]] = deque()
    for batch in batches:
        waiting.append((batch, threads.submit(_by_a_free_one, free, batch)))
        if len(waiting) > AHEAD * len(workers):
            batch, result = waiting.popleft()
            yield batch, result.result()
    for batch, result in waiting:
        yield batch, result.result()


def _by_a_free_one(free: "queue.SimpleQueue[_Worker]", batch: TextBatch) -> list[Encoded]:
    worker = free.get()
    try:
        return worker.ask(batch.cuts)
    finally:
        free.put(worker)


def _started(encoder: Encoder, processes: int) -> list["_Worker"]:
    """Workers that have the tokenizer; none if they cannot have it."""
    workers = []
    try:
        workers = [_Worker() for _ in range(processes)]
        for worker in workers:
            worker.link.send(encoder)
        for worker in workers:
            worker.answer()
    except (PicklingError, AttributeError, TypeError, RequestError):
        for worker in workers:
            worker.close()
        return []
    return workers


class _Worker:
    """A process, and the connection to it."""

    def __init__(self) -> None:
        self.link, theirs = Pipe()
        code = f"from lit_small_lm.data.worker import serve; serve({theirs.fileno()})"
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(  # noqa: S603 (this Python, our own words)
            [sys.executable, "-c", code],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that asked
        )
        theirs.close()

    def ask(self, cuts: list) -> list[Encoded]:
        try:
            self.link.send(cuts)
        except OSError:
            raise self._gone() from None
        return self.answer()

    def answer(self) -> Any:
        """What the process says; raised if it is an error."""
        try:
            found = self.link.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(found, Exception):
            raise found
        return found

    def _gone(self) -> RunError:
        return RunError(
            f"a tokenising process ended with status {self.process.wait()} (out of memory?); the same command goes on"
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.link.close()


def serve(handle: int) -> None:
    """What a worker does: take an encoder, then answer texts until the connection ends."""
    link, encoder = Connection(handle), None
    while True:
        try:
            asked = link.recv()
        except (EOFError, OSError):
            return
        except Exception as error:
            link.send(RequestError(f"the tokenizer cannot be loaded in another process: {error}"))
            return
        if encoder is None:
            encoder = asked
            link.send("ready")
        else:
            link.send(_answer(encoder, asked))


def _answer(encoder: Encoder, cuts: list) -> list[Encoded] | Exception:
    try:
        return encoded(encoder, cuts)
    except (RequestError, RunError) as error:
        return error
    except Exception as error:
        return RunError(f"tokenising failed: {type(error).__name__}: {error}")
