"""`lit-small-lm completion bash | zsh | fish`: a completion script, which starts no Python when a key is pressed.

Commands, options, plug-in names and choices are written into it as they are now; with `--plugins` also your own. Below
a place that may hold several classes, the options of all of them are offered.
"""

import argparse
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lit_small_lm import __version__
from lit_small_lm.__main__ import COMMANDS
from lit_small_lm.cli.describing import descriptions
from lit_small_lm.cli.options import Options
from lit_small_lm.cli.schema import Option, choices_of, names, options_of, refined, slot
from lit_small_lm.discovery import discover
from lit_small_lm.plugin import Sampler
from lit_small_lm.spec import Spec, known

CONFIGURED = ("fit", "validate", "test", "prepare", "plan")
"""Commands that take the options of a configuration."""
PARTS: dict[str, dict[str, type[Spec]]] = {"generate": {"sampler": Sampler}}
"""Commands that take the name of a class and its options: by the option that names it, the kind of class."""


class Word(NamedTuple):
    """An option as a shell knows it."""

    name: str
    values: tuple[str, ...] | None
    """What may follow; empty: anything, such as a path; None: nothing."""
    text: str = ""


def run(command: str, argv: list[str]) -> int:
    """Print the script for a shell."""
    args = parser(command).parse_args(argv)
    from lit_small_lm.cli.lit import quiet, roots

    quiet()
    discover(args.plugins)
    shared = [Word("--config", (), "a YAML file"), Word("--help", None, "a command's options"), *words_of(roots())]
    own = {name: list(_own(name)) for name in COMMANDS}
    print("\n".join(SHELLS[args.shell](own, shared)))
    return 0


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog="lit-small-lm completion", description="Print a completion script for a shell.")
    parser.add_argument("shell", choices=list(SHELLS), help="; source its output, or save it where the shell looks")
    parser.add_plugins()
    return parser


def _own(command: str) -> Iterator[Word]:
    """The options that a command declares by itself, and those of the classes it takes."""
    parts = words_of({name: slot(kind) for name, kind in PARTS.get(command, {}).items()})
    yield from parts
    yield from (Word(f"--{name}.help", None, "options of the one named") for name in PARTS.get(command, {}))
    for action in importlib.import_module(COMMANDS[command][0]).parser(command)._actions:
        values = None if action.nargs == 0 else tuple(map(str, action.choices or ()))
        text = "" if action.help in (None, argparse.SUPPRESS) else action.help
        for name in action.option_strings or ([command] if values else []):  # after the command: what it is about
            if (name.startswith("--") or name == command) and name not in {part.name for part in parts}:
                yield Word(name, values, text)


def words_of(options: Mapping[str, Option], above: str = "--", kinds: tuple[type, ...] = ()) -> list[Word]:
    """Options and everything below them; `kinds` are those above, which are not gone into again."""
    found: dict[str, Word] = {}
    for name, option in options.items():
        for word in _words_below(f"{above}{name}", option, kinds):
            before = found.setdefault(word.name, word)
            if before.values is not None and word.values is not None:
                found[word.name] = before._replace(values=tuple(dict.fromkeys([*before.values, *word.values])))
    return list(found.values())


def _words_below(name: str, option: Option, kinds: tuple[type, ...]) -> Iterator[Word]:
    if option.form == "leaf":
        yield Word(name, tuple(choices_of(option)))
        return
    values = tuple(names(option)) if option.form in ("slot", "list") else ()
    yield Word(name, values)
    if option.form == "table" or option.kind in kinds:
        return
    bounds = option.bounds if option.form == "group" else {}
    for cls in [option.kind] if option.form == "group" else known(option.kind).values():
        texts, below = descriptions(cls), options_of(cls)
        for key, inner in below.items():
            for word in words_of({key: refined(inner, bounds.get(key))}, f"{name}.", (*kinds, option.kind)):
                yield word._replace(text=texts.get(key, "")) if word.name == f"{name}.{key}" else word


# ------------------------------------------------------------------------------------------------------------- shells
def _bash(own: Mapping[str, list[Word]], shared: list[Word]) -> Iterator[str]:
    yield f"# completion of lit-small-lm {__version__} for bash; made by: lit-small-lm completion bash"
    yield "_lit_small_lm() {"
    yield '    local cur="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" values= options='
    yield '    if [[ $cur == "=" ]]; then cur='
    yield '    elif [[ $before == "=" ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi'
    yield "    COMPREPLY=()"
    yield "    if (( COMP_CWORD == 1 )); then"
    yield f'        COMPREPLY=($(compgen -W "{_line(COMMANDS)} --help" -- "$cur")); return'
    yield "    fi"
    yield '    case "$before" in'
    for values, flags in _by_values([*shared, *(word for words in own.values() for word in words)]):
        yield f'        {"|".join(flags)}) values="{_line(values)}" ;;'
    yield "    esac"
    yield "    if [[ $cur != -* && -n $values ]]; then"
    yield '        COMPREPLY=($(compgen -W "$values" -- "$cur")); return'
    yield "    fi"
    yield "    [[ $cur == -* ]] || return"
    yield f'    local shared="{_line(_flags(shared))}"'
    yield '    case "${COMP_WORDS[1]}" in'
    for command, words in own.items():
        more = " $shared" if command in CONFIGURED else ""
        yield f'        {command}) options="{_line(_flags(words))}{more}" ;;'
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$options" -- "$cur"))'
    yield "}"
    yield "complete -o bashdefault -o default -F _lit_small_lm lit-small-lm"


def _zsh(own: Mapping[str, list[Word]], shared: list[Word]) -> Iterator[str]:
    yield "#compdef lit-small-lm"
    yield f"# completion of lit-small-lm {__version__} for zsh; made by: lit-small-lm completion zsh"
    yield "_lit_small_lm() {"
    yield "    local -a commands options shared"
    yield f"    commands=({_line(_described(name, what) for name, (_, what) in COMMANDS.items())})"
    yield "    if (( CURRENT == 2 )); then _describe command commands; return; fi"
    yield '    if [[ ${words[CURRENT]} != -* ]]; then case "${words[CURRENT-1]}" in'
    for values, flags in _by_values([*shared, *(word for words in own.values() for word in words)]):
        yield f"        {'|'.join(flags)}) compadd -- {_line(values)}; _files; return ;;"
    yield "        *) _files; return ;;"
    yield "    esac; fi"
    yield f"    shared=({_line(_described(word.name, word.text) for word in shared)})"
    yield '    case "${words[2]}" in'
    for command, words in own.items():
        more = " $shared" if command in CONFIGURED else ""
        flags = [_described(word.name, word.text) for word in words if word.name.startswith("--")]
        yield f"        {command}) options=({_line(flags)}{more}) ;;"
    yield "    esac"
    yield "    _describe -o option options"
    yield "}"
    yield "if [[ $funcstack[1] == _lit_small_lm ]]; then"
    yield '    _lit_small_lm "$@"'
    yield "else"
    yield "    compdef _lit_small_lm lit-small-lm"
    yield "fi"


def _fish(own: Mapping[str, list[Word]], shared: list[Word]) -> Iterator[str]:
    yield f"# completion of lit-small-lm {__version__} for fish; made by: lit-small-lm completion fish"
    start = "complete -c lit-small-lm"
    for command, (_, what) in COMMANDS.items():
        yield f"{start} -n __fish_use_subcommand -f -a {command} -d '{_plain(what)}'"
    groups = [(command, words) for command, words in own.items()] + [(" ".join(CONFIGURED), shared)]
    for commands, words in groups:
        for word in words:
            takes = "-f" if word.values is None else f"-x -a '{_line(word.values)}'" if word.values else "-r"
            where = f"-n '__fish_seen_subcommand_from {commands}'"
            flag = f" -l {word.name[2:]}" if word.name.startswith("--") else ""
            text = f" -d '{_plain(word.text)}'" if word.text else ""
            yield f"{start} {where}{flag} {takes}{text}"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _by_values(words: Iterable[Word]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Options that are followed by the same values, together."""
    flags: dict[tuple[str, ...], dict[str, None]] = {}
    for word in words:
        if word.values:
            flags.setdefault(word.values, {})[word.name] = None
    return [(values, list(found)) for values, found in flags.items()]


def _flags(words: Iterable[Word]) -> list[str]:
    return [word.name for word in words if word.name.startswith("--")]


def _line(words: Iterable[str]) -> str:
    return " ".join(words)


def _described(name: str, text: str) -> str:
    return f"'{name}:{_plain(text)}'" if text else f"'{name}'"


def _plain(text: str) -> str:
    """Help text without what a shell would read as its own."""
    return json.dumps(text, ensure_ascii=False)[1:-1].translate(str.maketrans("", "", "'\"\\`$:[]"))[:100]
