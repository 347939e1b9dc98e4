"""`lit-small-lm COMMAND`: dispatch. Help, version and a mistyped command answer before torch is imported."""

import errno
import importlib
import os
import sys
import time
import traceback
import warnings

from lit_small_lm import __version__
from lit_small_lm.errors import RequestError, RunError, nearest, place_of, request_lines, shown
from lit_small_lm.ranks import process_number

SECONDS_TO_END = 3
"""Of several processes that fail alike, the first one says why, and has this long to end the others."""
COMMANDS = {
    "fit": ("lit_small_lm.cli.lit", "train a model, start to finish; --resume continues a run"),
    "validate": ("lit_small_lm.cli.lit", "score the validation split with a run's newest checkpoint"),
    "test": ("lit_small_lm.cli.lit", "score the test split once and write test.json"),
    "prepare": ("lit_small_lm.cli.prepare", "tokenise the data of a configuration before training"),
    "generate": ("lit_small_lm.cli.generate", "write text with a trained model"),
    "analyze": ("lit_small_lm.cli.analyze", "measure what each layer of a trained model does"),
    "prune": ("lit_small_lm.cli.prune", "write a trained model with fewer layers, or with fewer weights"),
    "average": ("lit_small_lm.cli.averaging", "write the mean of a run's best checkpoints as a run of its own"),
    "import": ("lit_small_lm.cli.importing", "make a run of a public model's folder (config.json, safetensors)"),
    "export": ("lit_small_lm.cli.exporting", "write a trained model as a folder that transformers loads"),
    "plan": ("lit_small_lm.cli.plan", "say what a run will take, before it begins: memory, time, disk, loss"),
    "doctor": ("lit_small_lm.cli.doctor", "say what of this machine is usable for training, what is not, and why"),
    "plugins": ("lit_small_lm.cli.plugins", "list every plug-in: kind, name, origin, what it is"),
    "schema": ("lit_small_lm.cli.json_schema", "print a JSON Schema of configurations, for editors"),
    "completion": ("lit_small_lm.cli.completion", "print a completion script for bash, zsh or fish"),
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
    """Run a command; returns its exit status: 0 done, 1 failed while running, 2 a wrong request, 130
    interrupted, 141 nobody read on."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        _refuse_unreadable(argv)
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except RequestError as error:
        _complain(error)
        return 2
    except RunError as error:
        _complain(error)
        return 1
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at the exit
        return 141
    except OSError as error:
        _complain(RunError(f"{shown(str(error.filename))}: {error.strerror}" if error.filename else str(error)))
        return 2 if error.errno == errno.ENAMETOOLONG else 1
    except KeyboardInterrupt:
        if process_number() == 0:
            print("error: stopped by SIGINT", file=sys.stderr)
        return 130
    except SystemExit as end:  # a parser has printed its help
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:  # a mistake in the code of this package or of a plug-in: its author needs to see where
        if process_number() == 0:
            traceback.print_exc()
        _complain(RunError(f"{type(error).__name__} in {place_of(error)}: {shown(str(error))}"))
        return 1


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


def _refuse_unreadable(argv: list[str]) -> None:
    """Raise RequestError for an argument that no file name or YAML can hold."""
    for word in argv:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise RequestError(f"{shown(word)}: holds bytes that are not UTF-8; allowed: UTF-8 text")
        if "\0" in word:
            raise RequestError(f"{shown(word)}: holds a NUL character; allowed: text without it")


def _complain(error: Exception) -> None:
    """Say why the command failed."""
    number = process_number()
    if number:
        time.sleep(SECONDS_TO_END)  # what it says afterwards is its own trouble
    for line in request_lines(error):
        print(f"process {number}: {line}" if number else line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
