"""How long an examination may take, said before a long one, and then what it is at."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from lit_small_lm.analysis.catalogue import Cost
from lit_small_lm.analysis.subject import Subject
from lit_small_lm.analysis.surgery import running
from lit_small_lm.cli import report
from lit_small_lm.training.callbacks.progress import clock

LONG = 20.0
"""Seconds from which on an estimate is worth a line."""
Announce = Callable[[str, int, int], None]
"""Told which piece of work is on, and how many of how many parts of it are done."""


def seconds(subject: Subject, costs: Mapping[str, Cost]) -> dict[str, float]:
    """What pieces of work may take, from one timed pass of the whole network and one without layers."""
    query = subject.questions.items[0].query

    def timed(layers: Sequence[nn.Module]) -> float:
        started = time.perf_counter()
        with torch.no_grad(), running(subject.net, layers):
            subject.net(query.tokens, query.context(), query.targets, query.scored).sum().item()
        return time.perf_counter() - started

    layers, asked = list(subject.net.layers), len(subject.questions.items)
    head, whole = (min(timed(some) for _ in range(3)) for some in ([], layers))  # what else runs only ever adds
    layer = max(whole - head, 0.0) / max(1, len(layers))
    return {name: asked * (cost.layers * layer + cost.heads * head) for name, cost in costs.items()}


@contextlib.contextmanager
def announced(parts: Mapping[str, float], what: str, less: str) -> Iterator[Announce]:
    """Says how long pieces of work may take, if that is long, and then how far they are.

    Args:
        parts: seconds of each, by name, in their order.
        what: they are together.
        less: what takes less time; `{longest}` in it is the name of the longest.
    """
    told = Announced(parts)
    if told.speaks:
        longest = max(parts, key=parts.__getitem__)
        share = f", {100 * parts[longest] / sum(parts.values()):.0f} % of it for {longest}" if len(parts) > 1 else ""
        report.say(f"{what}: about {clock(sum(parts.values()))}{share}; less with {less.format(longest=longest)}")
    try:
        yield told
    finally:
        told.done()


class Announced:
    """One line that changes on a terminal, else a line for each piece of work."""

    def __init__(self, parts: Mapping[str, float]) -> None:
        self.names, self.current = list(parts), ""
        self.terminal, self.speaks = sys.stderr.isatty(), sum(parts.values()) > LONG

    def __call__(self, name: str, done: int, of: int) -> None:
        if not self.speaks or (not self.terminal and name == self.current):
            return
        self.current = name
        line = name if len(self.names) == 1 else f"{self.names.index(name) + 1}/{len(self.names)} {name}"
        if self.terminal:
            print(f"\r{line} {100 * done // of} %{'':20}", end="", file=sys.stderr, flush=True)
        else:
            report.say(line)

    def done(self) -> None:
        """Leave the changing line."""
        if self.terminal and self.current:
            print(file=sys.stderr)
