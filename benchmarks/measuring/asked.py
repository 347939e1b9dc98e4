"""What is asked of a benchmark on its command line, and a line that says what is allowed where it is something else."""

import argparse
from collections.abc import Callable
from typing import NoReturn


class Asking(argparse.ArgumentParser):
    """A parser that shows a benchmark's text as it stands, and answers a mistake with a line and status 2."""

    def __init__(self, text: str) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number that is not below `least`."""

    def number(text: str) -> int:
        value = int(text) if text.removeprefix("-").isdecimal() else None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: whole numbers from {least} on")
        return value

    return number
