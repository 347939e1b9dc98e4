"""Options shared by commands: parsed by argparse, with errors of one line."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from lit_small_lm.errors import RequestError, nearest, shown


class Options(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and raises RequestError instead of printing its usage."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def add_plugins(self) -> None:
        """The option that every command has which looks at plug-ins."""
        help = "a file or folder of your own plug-ins; may be repeated"
        self.add_argument("--plugins", action="append", default=[], metavar="PATH", help=help)

    def error(self, message: str) -> NoReturn:
        raise RequestError(message.replace("argument ", "", 1))

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        """Like argparse's; an unknown option is named with the nearest known one."""
        found, unknown = self.parse_known_args(args)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            name = unknown[0].split("=")[0]
            raise RequestError(
                f"{shown(name)}: no such option; known: {', '.join(sorted(known))}{nearest(name, known)}"
            )
        return found
