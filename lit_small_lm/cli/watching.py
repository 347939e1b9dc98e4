"""Frames of a text on a terminal: as they become final, or every state of the canvas while it fills in."""

import itertools
import shutil
import sys
import unicodedata
from collections.abc import Iterable

from lit_small_lm.corpora import Encoder
from lit_small_lm.errors import shown
from lit_small_lm.generation import Written, written
from lit_small_lm.plugin import Frame

OPEN = "\u2591"
"""A place where nothing stands yet."""


def shown_as(form: str, frames: Iterable[Frame], prompt: str, encoder: Encoder) -> Frame | None:
    """Show frames as "text", "watch" or, for "json", not at all, up to the document's end; returns the last of them."""
    given, last = 1 + len(encoder.encode([prompt])[0]), None
    show = {"text": _Text, "watch": _Canvas if sys.stdout.isatty() else _Lines, "json": _Nothing}[form](prompt, encoder)
    for last in frames:
        found = written(last, given, encoder)
        show.frame(last, found)
        if found.ended:
            break
    show.close()
    return last


class _Nothing:
    def __init__(self, prompt: str, encoder: Encoder) -> None:
        self.encoder = encoder

    def frame(self, frame: Frame, found: Written) -> None:
        """A state of the text."""

    def close(self) -> None:
        """After the last one."""


class _Text(_Nothing):
    """What is final, as it becomes so; in a file or a pipe to the byte, on a terminal without orders to it."""

    def __init__(self, prompt: str, encoder: Encoder) -> None:
        super().__init__(prompt, encoder)
        self.done, self.safe = 0, harmless if sys.stdout.isatty() else str
        print(self.safe(prompt), end="", flush=True)

    def frame(self, frame: Frame, found: Written) -> None:
        print(self.safe(found.text[self.done :]), end="", flush=True)
        self.done = len(found.text)

    def close(self) -> None:
        print()


class _Lines(_Nothing):
    """Every state on a line of its own, behind the number of evaluations it took."""

    def frame(self, frame: Frame, found: Written) -> None:
        print(f"{frame.nfe:5d}  {shown_whole(canvas_text(frame, self.encoder))}", flush=True)


class _Canvas(_Nothing):
    """Every state in the place of the one before, as much of it as the terminal has lines."""

    lines = 0

    def frame(self, frame: Frame, found: Written) -> None:
        size = shutil.get_terminal_size()
        text = [f"{frame.nfe} evaluations", *wrapped(canvas_text(frame, self.encoder), size.columns)]
        text = [text[0], *text[1:][-(size.lines - 2) :]]
        print(f"\x1b[{self.lines}F\x1b[J" * bool(self.lines) + "\n".join(text), flush=True)
        self.lines = len(text)


def canvas_text(frame: Frame, encoder: Encoder) -> str:
    """The first row of a frame behind the document's start and up to its end, open places as `OPEN`."""
    specials, text = encoder.specials, []
    tokens = frame.tokens[0, 1:].tolist()
    tokens = tokens[: tokens.index(specials.end)] if specials.end in tokens else tokens
    for open, run in itertools.groupby(tokens, lambda token: token == specials.mask):
        ids = list(run)
        text.append(OPEN * len(ids) if open else encoder.decode(ids))
    return "".join(text)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, safe to print."""
    lines = [shown_whole(line) for line in text.split("\n")]
    return [line[at : at + width] for line in lines for at in range(0, max(len(line), 1), width)]


def shown_whole(text: str) -> str:
    """Text on one line, control characters escaped."""
    return "".join(c if c.isprintable() else shown(c) for c in text)


def harmless(text: str) -> str:
    """Text for a terminal: control characters spelled out, escape sequences with them; line ends and tabs stay."""
    return "".join(shown(c) if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
