"""`lit-small-lm plugins`: every known plug-in with kind, name, origin and the first line of its docstring."""

import inspect
import json

from lit_small_lm.cli.options import Options
from lit_small_lm.discovery import describe, discover, origins
from lit_small_lm.errors import shown, shown_path
from lit_small_lm.plugin import kinds, known


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(prog="lit-small-lm plugins", description="List every plug-in: kind, name, origin, what it is.")
    parser.add_plugins()
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def run(command: str, argv: list[str]) -> int:
    """List what is known; `--json` for one object a line."""
    args = parser(command).parse_args(argv)
    discover(args.plugins)
    if args.json:
        for origin in origins():
            print(json.dumps(vars(origin)))
        return 0
    rows = [
        (kind, name, shown_path(describe(cls).source), shown((inspect.getdoc(cls) or "").split("\n")[0]))
        for kind, base in kinds().items()
        for name, cls in known(base).items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]))
    return 0
