"""`lit-small-lm COMMAND`: dispatch. Help, version and a mistyped command answer before torch is imported."""

import importlib
import os
import sys
import warnings

from lit_small_lm import __version__, signals
from lit_small_lm.cli.complaint import complain, messages_may_be_lost, status, told
from lit_small_lm.errors import RequestError, nearest, shown
from lit_small_lm.ranks import process_number

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
    """Run a command; returns its exit status: 0 done, 1 failed while running, 2 a wrong request, 128 and
    a signal's number: ended by it, 141 nobody read on."""
    with messages_may_be_lost():
        return _answered(sys.argv[1:] if argv is None else argv)


def _answered(argv: list[str]) -> int:
    told.cause = False
    try:
        _refuse_unreadable(argv)
        with signals.watched():
            done = _dispatch(argv)
        sys.stdout.flush()
        return done
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at the exit
        return 141
    except signals.Stopped as stop:
        if process_number() == 0:
            print(f"error: {stop}", file=sys.stderr)
        return 128 + stop.number
    except SystemExit as end:  # a parser has printed its help
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        complain(error, process_number(), wait=True)
        return status(error)


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


if __name__ == "__main__":
    sys.exit(main())
