"""Options shared by commands: parsed by argparse, with errors of one line."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_small_lm.discovery import ModuleName
from lit_small_lm.errors import WIDTH, RequestError, listing, nearest, not_known, path_of, shown


class Number:
    """A type of options: a number with a range, read as an option of a configuration is; see `schema.Option`.

    Args:
        kind: int or float.
        bounds: low, high, above, below, as `spec.setting` takes them.
    """

    def __init__(self, kind: type, **bounds: float) -> None:
        from lit_small_lm.cli.schema import plain

        self.option = plain(kind, bounds=bounds)

    def __call__(self, text: str) -> float:
        from lit_small_lm.cli.schema import Wrong, read
        from lit_small_lm.cli.yaml_tree import scalar

        try:
            return read(scalar(text), self.option, typed=True)
        except Wrong as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    def allowed(self) -> str:
        """What it takes, in words."""
        from lit_small_lm.cli.schema import allowed

        return allowed(self.option)


def place(text: str) -> Path:
    """A type of options: a path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; allowed: a path")
    try:
        return path_of(text)
    except RequestError as error:  # argparse would hide what it says
        raise argparse.ArgumentTypeError(str(error)) from None


class Options(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and raises RequestError instead of printing its usage."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def add_plugins(self) -> None:
        """The option that every command has which looks at plug-ins."""
        help = "a file or folder of your own plug-ins; may be repeated"
        self.add_argument("--plugins", action="append", default=[], metavar="PATH", help=help)
        help = "a Python module whose classes a configuration may name; its code runs; may be repeated"
        self.add_argument(
            "--allow_import", dest="plugins", type=ModuleName, action="append", default=[], metavar="MODULE", help=help
        )

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """Like argparse's; the help of a number ends with its range."""
        kind = kwargs.get("type")
        if isinstance(kind, Number) and "help" in kwargs:
            kwargs["help"] += f" ({kind.allowed()})"
        return super().add_argument(*names, **kwargs)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise RequestError for a value that is none of an option's choices."""
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.dest
            raise not_known(name, str(value), map(str, action.choices), "choice")

    def error(self, message: str) -> NoReturn:
        raise RequestError(message.replace("argument ", "", 1))

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        """Like argparse's; an unknown option is named with the nearest known one."""
        found, unknown = self.parse_known_args(args)
        if unknown:
            raise self.unknown(unknown[0])
        return found

    def parse_beside(self, args: Sequence[str], sections: Iterable[str]) -> tuple[argparse.Namespace, list[str]]:
        """The command's own options, and the words beside them, which belong to sections of a configuration.

        Raises:
            RequestError: an option that belongs to neither.
        """
        found, rest = self.parse_known_args(args)
        self.refuse_unknown(rest, sections)
        return found, rest

    def refuse_unknown(self, words: Iterable[str], sections: Iterable[str]) -> None:
        """Raise RequestError for the first word that is an option of neither the command nor these sections."""
        sections = [*sections, "config", "print_config", "help"]
        for word in words:
            if word.startswith("--") and len(word) > 2 and re.split("[.=+]", word[2:])[0] not in sections:
                raise self.unknown(word, [f"--{name}" for name in sections])

    def unknown(self, word: str, more: Sequence[str] = ()) -> RequestError:
        """The error for an option that there is not."""
        own = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        name, known = word.split("=")[0], sorted({*own, *more})
        head, tail = f"{shown(name)}: no such option; known: ", nearest(name, known)
        return RequestError(head + listing(name, known, WIDTH - len("error: ") - len(head) - len(tail)) + tail)
