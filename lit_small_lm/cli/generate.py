"""`lit-small-lm generate`: stream text from the newest good checkpoint of a run."""

import json
import math
import sys
import time
from pathlib import Path

from lit_small_lm.cli.options import Options
from lit_small_lm.errors import RequestError


def run(command: str, argv: list[str]) -> int:
    """Generate as asked; prints the text as it is drawn, or one JSON object with `--json`."""
    args = parser(command).parse_args(argv)
    _check(args)
    from lit_small_lm.checkpoint import load
    from lit_small_lm.samplers.autoregressive import Autoregressive

    model = load(args.path, args.plugins)
    sampler = Autoregressive(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    started, pieces = time.perf_counter(), []
    if not args.json:
        print(args.prompt, end="", flush=True)
    for piece in model.generate(args.prompt, args.max_new_tokens, sampler, args.seed):
        pieces.append(piece)
        if not args.json:
            print(piece, end="", flush=True)
    seconds, text = time.perf_counter() - started, "".join(pieces)
    if args.json:
        record = {"prompt": args.prompt, "text": text, "seed": args.seed, "step": model.record["step"]}
        print(json.dumps({**record, "sampler": sampler.to_dict(), "seconds": round(seconds, 3)}))
    else:
        print()
    return 0


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog="lit-small-lm generate", description="Write text with a trained model.")
    parser.add_argument("path", type=Path, metavar="RUN_DIR", help="a run directory, or one checkpoint file")
    parser.add_argument("--prompt", default="", help="what the text begins with; - reads standard input")
    parser.add_argument("--max_new_tokens", type=int, default=100, help="tokens to draw at most (default 100)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens only")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from the likeliest tokens of this mass only")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_plugins()
    return parser


def _check(args) -> None:
    rules = {
        "max_new_tokens": (args.max_new_tokens >= 1, "at least 1"),
        "temperature": (args.temperature >= 0 and math.isfinite(args.temperature), "a finite number, at least 0"),
        "top_k": (args.top_k is None or args.top_k >= 1, "at least 1"),
        "top_p": (0 < args.top_p <= 1, "above 0, at most 1"),
    }
    for name, (good, allowed) in rules.items():
        if not good:
            raise RequestError(f"--{name}: {getattr(args, name)}; allowed: {allowed}")
    if args.prompt == "-":
        args.prompt = _standard_input()


def _standard_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"--prompt: byte {error.start} of standard input is not UTF-8") from None
