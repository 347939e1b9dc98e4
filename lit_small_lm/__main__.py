"""`lit-small-lm COMMAND`: dispatch. Help, version and a mistyped command answer before torch is imported."""

import importlib
import os
import sys
import warnings

from lit_small_lm import __version__
from lit_small_lm.errors import RequestError, RunError, nearest, request_lines, shown

COMMANDS = {
    "fit": ("lit_small_lm.cli.lit", "train a model, start to finish; --resume continues a run"),
    "validate": ("lit_small_lm.cli.lit", "score the validation split with a run's newest checkpoint"),
    "test": ("lit_small_lm.cli.lit", "score the test split once and write test.json"),
    "generate": ("lit_small_lm.cli.generate", "write text with a trained model"),
    "plugins": ("lit_small_lm.cli.plugins", "list every plug-in: kind, name, origin, what it is"),
}


def usage() -> str:
    """The text of `--help`."""
    lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lit-small-lm COMMAND [options]    (lit-small-lm COMMAND --help: a command's options)",
            "",
            "Train small language models.",
            "",
            *lines,
            "",
            "  --version  print the version",
            "",
            "start with: lit-small-lm fit -c configs/demo.yaml",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 failed while running, 2 a wrong request."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except RequestError as error:
        _complain(error)
        return 2
    except RunError as error:
        _complain(error)
        return 1
    except OSError as error:
        _complain(RunError(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        return 1
    except KeyboardInterrupt:
        print("error: stopped by SIGINT", file=sys.stderr)
        return 130


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"lit-small-lm {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise RequestError(f"{shown(argv[0])!r} is not a command; known: {known}{nearest(argv[0], COMMANDS)}")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    module, _ = COMMANDS[argv[0]]
    return importlib.import_module(module).run(argv[0], argv[1:])


def _complain(error: Exception) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one speaks
        for line in request_lines(error):
            print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
