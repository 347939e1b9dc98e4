"""`lit-small-lm generate`: stream text from the newest good checkpoint of a run."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lit_small_lm.cli.options import Number, Options, place
from lit_small_lm.cli.words import has_value
from lit_small_lm.errors import RequestError

if TYPE_CHECKING:
    from lit_small_lm.checkpoint import LanguageModel
    from lit_small_lm.plugin import Frame, Sampler

TEMPERATURE = 0.8
"""Of a sampler that has one, where none is asked for."""
SHORT = ("temperature", "top_k", "top_p")
"""Options of many samplers that need no `sampler.` before them."""


def run(command: str, argv: list[str]) -> int:
    """Generate as asked; prints the text as it becomes final, or one JSON object with `--json`."""
    argv, of_sampler = split(argv)
    args = parser(command).parse_args(argv)
    if args.prompt == "-":
        args.prompt = _standard_input()
    from lit_small_lm.checkpoint import load
    from lit_small_lm.cli.watching import shown_as
    from lit_small_lm.samplers.layout import lay_by_outputs

    model = load(args.path, args.plugins)
    lay_by_outputs(model.net)
    if "--sampler.help" in of_sampler:
        print("\n".join(options_of_sampler(of_sampler, model)))
        return 0
    sampler = chosen(of_sampler, {name: getattr(args, name) for name in SHORT}, model)
    started = time.perf_counter()
    frames = model.frames(args.prompt, args.max_new_tokens, sampler, args.seed, args.suffix)
    last = shown_as("json" if args.json else args.watch, frames, args.prompt, model.encoder)
    if args.json:
        print(json.dumps(record(args, model, sampler, last, time.perf_counter() - started)))
    return 0


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog="lit-small-lm generate", description="Write text with a trained model.")
    parser.add_argument("path", type=place, metavar="RUN_DIR", help="a run directory, or one checkpoint file")
    parser.add_argument("--prompt", default="", help="what the text begins with; - reads standard input")
    parser.add_argument("--suffix", default="", help="what it ends with: the tokens between are filled in")
    parser.add_argument(
        "--max_new_tokens",
        type=Number(int, low=1, high=2**31),
        default=100,
        help="tokens to draw at most (default 100)",
    )
    sampler = "how tokens are drawn (default: as the model's objective says); --sampler.OPTION VALUE sets an option of "
    parser.add_argument("--sampler", metavar="NAME", help=f"{sampler}it, --sampler.help lists them")
    parser.add_argument(
        "--temperature", type=Number(float, low=0), help=f"0 takes the likeliest token (default {TEMPERATURE})"
    )
    parser.add_argument("--top_k", type=Number(int, low=1, high=2**31), help="draw from the k likeliest tokens only")
    parser.add_argument(
        "--top_p", type=Number(float, above=0, high=1), help="draw from the likeliest tokens of this mass only"
    )
    parser.add_argument(
        "--seed", type=Number(int, low=0, high=2**63 - 1), default=0, help="same seed, same text (default 0)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of text")
    watch = "show every state of the text: in place on a terminal, elsewhere a line each"
    form.add_argument("--watch", action="store_const", const="watch", default="text", help=watch)
    parser.add_plugins()
    return parser


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those about the sampler with their values."""
    words, own, of_sampler = list(argv)[::-1], [], []
    while words:
        word = words.pop()
        name, equals, _ = word.partition("=")
        if name != "--sampler" and not name.startswith("--sampler."):
            own.append(word)
            continue
        of_sampler.append(word)
        if not equals and name != "--sampler.help" and has_value(words):
            of_sampler.append(words.pop())
    return own, of_sampler


def chosen(words: Sequence[str], short: dict[str, float | None], model: "LanguageModel") -> "Sampler":
    """The sampler that was asked for, or the objective's own, with the options given.

    Raises:
        RequestError: no such sampler or option, a value out of range, or an option given twice.
    """
    found, given, more = _sampler(words, model), {word.partition("=")[0] for word in words}, []
    fields = found.to_dict()["init_args"]
    for name, value in short.items():
        option = f"--sampler.{name}"
        if value is None:
            continue
        if option in given:
            raise RequestError(f"--{name}: {option} was given, too; allowed: one of them")
        if name not in fields:
            raise RequestError(f"--{name}: {value}; {type(found).__name__} has no such option")
        more.append(f"{option}={value}")
    if short["temperature"] is None and "--sampler.temperature" not in given and "temperature" in fields:
        more.append(f"--sampler.temperature={TEMPERATURE}")
    return _sampler([*words, *more], model)


def _sampler(words: Sequence[str], model: "LanguageModel") -> "Sampler":
    from lit_small_lm.cli.request import check_request
    from lit_small_lm.cli.schema import slot
    from lit_small_lm.plugin import Sampler

    default = model.objective.sampler()
    tree = check_request(words, {"sampler": slot(Sampler, default)}).tree
    return Sampler.from_dict(tree["sampler"]) if tree else default


def options_of_sampler(words: Sequence[str], model: "LanguageModel") -> Iterator[str]:
    """A line for every option of the sampler that was asked for."""
    from lit_small_lm.cli.describing import descriptions
    from lit_small_lm.cli.schema import allowed, options_of, plain_data

    sampler = chosen([word for word in words if word != "--sampler.help"], dict.fromkeys(SHORT), model)
    yield f"{type(sampler).__name__}: {(type(sampler).__doc__ or '').splitlines()[0]}"
    for name, option in options_of(type(sampler)).items():
        what = allowed(option) if option.form == "leaf" else f"one of {option.kind.__name__}"
        default = plain_data(option.default)
        text = default["class_path"].rpartition(".")[2] if isinstance(default, dict) else json.dumps(default)
        yield f"  --sampler.{name}  {descriptions(type(sampler)).get(name, '')} ({what}; default {text})"


def record(args, model: "LanguageModel", sampler: "Sampler", last: "Frame | None", seconds: float) -> dict:
    """What `--json` prints: `tokens` are those drawn for the text, its end included, `nfe` network evaluations."""
    from lit_small_lm.generation import Written, written

    behind = len(model.encoder.encode([args.suffix])[0])
    given = 1 + len(model.encoder.encode([args.prompt])[0])
    found = Written("", 0, False) if last is None else written(last, given, model.encoder)
    tokens, nfe = found.tokens - behind, 0 if last is None else last.nfe
    return {
        "prompt": args.prompt,
        "text": found.text,
        "seed": args.seed,
        "step": model.record["step"],
        "sampler": sampler.to_dict(),
        "tokens": tokens,
        "nfe": nfe,
        "tokens_per_evaluation": round(tokens / nfe, 3) if nfe else 0.0,
        "seconds": round(seconds, 3),
    }


def _standard_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"--prompt: byte {error.start} of standard input is not UTF-8") from None
