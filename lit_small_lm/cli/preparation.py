"""The progress of a preparation, as the command line shows it."""

import math
import sys
import time

from lit_small_lm.cli import report
from lit_small_lm.data.progress import Progress
from lit_small_lm.training.callbacks.progress import clock, short

QUIET, OFTEN = 3.0, 10.0
"""Seconds before the first line of progress, and between lines where there is no terminal."""


class Shown:
    """Says on standard error how far a preparation is: one line that changes on a terminal, else a line now and then.

    Args:
        name: of what is prepared.
    """

    def __init__(self, name: str) -> None:
        self.name, self._last, self._terminal = name, -math.inf, sys.stderr.isatty()
        self._begun = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        every = 0.5 if self._terminal else OFTEN
        if now - self._begun >= QUIET and now - self._last >= every:
            self._last = now
            self._say(line_of(self.name, progress))

    def done(self) -> None:
        """Leave the changing line."""
        if self._terminal and self._last > 0:
            print(file=sys.stderr)

    def _say(self, line: str) -> None:
        if self._terminal:
            print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)
        else:
            report.say(line)


def line_of(name: str, progress: Progress) -> str:
    """`web: 42 %, 1.2M documents, 1.3B tokens, 5.1M tokens/s, 0:12:30 left`."""
    rate = progress.tokens / max(progress.seconds, 1e-9)
    left = "" if progress.left is None else f", {clock(progress.left)} left"
    counts = f"{short(progress.documents)} documents, {short(progress.tokens)} tokens, {short(round(rate))} tokens/s"
    return f"{name}: {100 * progress.share:.0f} %, {counts}{left}"
