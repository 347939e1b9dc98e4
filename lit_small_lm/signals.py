"""Signals that ask a command to end, or a run to save: they wait for the end of a step while training goes on.

SIGINT, SIGTERM and SIGHUP end a command at once, with status 128 plus the signal's number; in training they wait until
the last step is saved. A second one then ends it on the spot: the trick is a pipe (`signal.set_wakeup_fd`) that a
thread reads, which also works while the main thread waits for another process or for the device. SIGUSR1 asks for a
checkpoint. Launchers pass on what the terminal has sent to all already, so that what comes within a second is one.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE = 1.0
"""Seconds within which a second signal is still the first."""


class Stopped(BaseException):
    """A signal ended the command where nothing has to be saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Heard:
    """What signals have asked for so far."""

    def __init__(self) -> None:
        self.end = 0
        """The number of the signal that asked to end."""
        self.save = False
        """Whether a checkpoint was asked for."""
        self.lost_worker = ""
        """What PyTorch says of a loader worker that died."""
        self.waiting = False
        """Whether signals wait for the end of a step."""

    def _ending(self, number: int, frame: FrameType | None) -> None:
        if self.end:
            return  # the thread below sees to it
        self.end = number
        _end_on_a_second_one(number)
        if not self.waiting:
            raise Stopped(number)

    def _saving(self, number: int, frame: FrameType | None) -> None:
        self.save = True


asked = Heard()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it signals mean what this module says; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked.__init__()
    handlers = {**dict.fromkeys(ENDING, asked._ending), signal.SIGUSR1: asked._saving}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():  # one that has been asked to end is about to, with that status
            signal.signal(number, signal.SIG_IGN if asked.end else handler)


def _end_on_a_second_one(first: int) -> None:
    """From now on a signal that asks to end is obeyed at once, whatever the main thread does."""
    out, into = os.pipe()
    os.set_blocking(into, False)
    signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    since = time.monotonic()

    def watch() -> None:
        while byte := os.read(out, 1):
            if byte[0] in ENDING and time.monotonic() - since > ONE:
                os._exit(128 + byte[0])

    threading.Thread(target=watch, daemon=True, name="second signal").start()


# ------------------------------------------------------------------------------------------------------------- training
@contextlib.contextmanager
def until_the_step_ends() -> Iterator[None]:
    """Within it signals set `asked`, and nothing else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked.waiting = True
    try:
        yield
    finally:
        asked.waiting = False
        handler = signal.getsignal(signal.SIGCHLD)
        if isinstance(handler, _Noting):
            signal.signal(signal.SIGCHLD, handler.raising)


class _Noting:
    """PyTorch's handler raises wherever the main thread is; a step that is half done could not be saved then."""

    def __init__(self, raising: Callable[[int, FrameType | None], object]) -> None:
        self.raising = raising

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.raising(number, frame)
        except RuntimeError as error:
            asked.lost_worker = asked.lost_worker or str(error)


def note_lost_workers() -> None:
    """Let the handler that PyTorch has set with the first loader worker note what it finds, until the step ends."""
    handler = signal.getsignal(signal.SIGCHLD)
    if asked.waiting and callable(handler) and not isinstance(handler, _Noting):
        signal.signal(signal.SIGCHLD, _Noting(handler))


def left_to_the_parent(worker: int = 0) -> None:
    """In a loader worker: signals to the whole group do nothing; SIGTERM ends it where its parent sent it."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # else nobody would see who sent it

    def listen(parent: int = os.getppid()) -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, daemon=True, name="signals").start()
