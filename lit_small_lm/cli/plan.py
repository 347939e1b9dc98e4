"""`lit-small-lm plan`: what a run will hold, compute, take and write, before anything of it is built."""

import json

from lit_small_lm.cli.options import Number, Options
from lit_small_lm.errors import RequestError, shown

TEXT = """Say what a run will take before it begins: parameters, memory, operations, time, energy, disk, and what
published fits say of its loss. No weights are allocated and nothing is downloaded. CONFIG is a configuration for fit,
a run folder or checkpoint, or a public model: its config.json, or the folder that holds it. The options of fit stand
beside the ones below: --data.batch_size 32, --max_tokens 1000000000, --trainer.precision bf16-mixed and so on."""

WHOLE = Number(int, low=1, high=2**53)


def run(command: str, argv: list[str]) -> int:
    """Print the plan as a table, or with `--json` as one JSON object."""
    own = parser(command)
    options, rest = own.parse_known_args(argv)
    place, rest = config_word(rest)
    if {"-h", "--help"} & set(rest):
        raise RequestError("--help: it stands right after plan")
    from lit_small_lm.cli import planning
    from lit_small_lm.cli.lit import roots

    own.refuse_unknown(rest, roots())
    found = planning.answer(place, rest, options)
    print(json.dumps(found.data) if options.json else "\n".join(found.lines))
    return 0


def parser(command: str) -> Options:
    """The command's own options; those of a configuration stand beside them."""
    parser = Options(
        prog=f"lit-small-lm {command}", usage=f"lit-small-lm {command} [CONFIG] [options]", description=TEXT
    )
    add = parser.add_argument
    add("--device", metavar="NAME", help="what it runs on, such as a100-80gb or rtx-4090; cpu measures this machine")
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--vocab_size", type=WHOLE, metavar="IDS", help="rows of the embedding, whatever the tokenizer says")
    add("--head", choices=("tied", "untied"), help="whether the head shares the embedding's weights")
    add(
        "--utilisation",
        type=Number(float, above=0, high=1),
        help="share of the device's dense peak that training reaches (default: 0.35)",
    )
    add("--price", type=Number(float, above=0), help="of one device for one hour, in any currency")
    add("--unique_tokens", type=WHOLE, metavar="TOKENS", help="different tokens at hand; more of a run are repetitions")
    add("--budget", metavar="BUDGET", help="propose parameters, tokens and shapes for 1e19 (FLOPs), 8h or '100$@2.5/h'")
    add(
        "--target_loss",
        type=Number(float, above=0),
        metavar="NATS",
        help="propose what reaches this loss, in nats per token",
    )
    add("--explain", action="store_true", help="print the network as pseudo-code with shapes instead")
    parser.add_plugins()
    return parser


def config_word(rest: list[str]) -> tuple[str | None, list[str]]:
    """The one word that belongs to no option, and the others."""
    words, others, place = list(rest)[::-1], [], None
    while words:
        word = words.pop()
        if word.startswith("-") and len(word) > 1:
            takes = "=" not in word and words and not (words[-1].startswith("--"))
            others += [word, words.pop()] if takes else [word]
        elif place is None:
            place = word
        else:
            raise RequestError(f"{shown(word)}: CONFIG is {shown(place)} already; allowed: one")
    return place, others
