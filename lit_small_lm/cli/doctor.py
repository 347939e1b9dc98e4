"""`lit-small-lm doctor`: what of this machine is usable for training, what is not, why, and the cure."""

import dataclasses
import json
import logging
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

from lit_small_lm.cli.checks import Finding, Scope, findings
from lit_small_lm.cli.options import Options
from lit_small_lm.errors import RequestError, shown

MARKS = {"ok": "ok", "warning": "warn", "no": "no", "stop": "STOP"}


def run(command: str, argv: list[str]) -> int:
    """Print what was found; 0 if training is possible here, 1 if not."""
    args = parser(command).parse_args(argv)
    for path in args.plugins:
        if not Path(path).exists():
            raise RequestError(f"--plugins: {shown(path)} does not exist (looked in {Path.cwd()})")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters is a finding
        found = list(findings(Scope(args.full, args.plugins)))
    stops = [finding for finding in found if finding.state == "stop"]
    if args.json:
        checks = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"training": "not possible" if stops else "possible", "checks": checks}, indent=2))
    else:
        print("\n".join([*lines(found), "", verdict(found)]))
    return 1 if stops else 0


def parser(command: str) -> Options:
    """The command's options."""
    parser = Options(
        prog="lit-small-lm doctor",
        description="Say what of this machine is usable for training, what is not, why, and what to do about it. "
        "Exit status: 0 if training is possible here, 1 if not.",
    )
    parser.add_argument("--full", action="store_true", help="also compile, communicate and ask the hub (seconds)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_plugins()
    return parser


def lines(found: Sequence[Finding]) -> list[str]:
    """The findings as a table; requirements that are met share a line."""
    met = [f"{f.name}\N{NO-BREAK SPACE}{f.what}" for f in found if f.topic == "version" and f.state == "ok"]
    rest = [f for f in found if f.topic != "version" or f.state != "ok"]
    names = textwrap.wrap(", ".join(met), 100, break_on_hyphens=False)
    rows = [("version", "ok", text.replace("\N{NO-BREAK SPACE}", " "), "") for text in names]
    rows += [(f.topic, MARKS[f.state], f"{f.name}: {f.what}", f.cure) for f in rest]
    width = max(len(row[0]) for row in rows)
    table, last = [], ""
    for topic, mark, text, cure in rows:
        table.append(f"{'' if topic == last else topic:{width}}  {mark:4}  {text}{f'  -> {cure}' if cure else ''}")
        last = topic
    return table


def verdict(found: Sequence[Finding]) -> str:
    """Whether training is possible here, and how."""
    stops = [finding for finding in found if finding.state == "stop"]
    if stops:
        return f"training is not possible here: {'; '.join(f'{f.name}: {f.what}' for f in stops)}"
    device = next((f for f in found if f.topic == "device" and f.name.startswith("cuda:")), None)
    taken = next((f for f in found if f.topic == "precision" and f.what.startswith("taken")), None)
    precision = f", precision {taken.name}" if taken else ""
    return f"training is possible here: {device.name if device else 'cpu'}{precision}"
