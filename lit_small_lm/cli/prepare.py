"""`lit-small-lm prepare`: tokenise what a configuration's data section names, before any training."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from lit_small_lm.cli import report
from lit_small_lm.cli.lit import quiet, roots
from lit_small_lm.cli.options import Options
from lit_small_lm.cli.preparation import Shown
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.run_options import refuse_file, script, with_packaged_files
from lit_small_lm.cli.schema import options_of, slot
from lit_small_lm.data.corpus import encoder_of
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.mixture import naming
from lit_small_lm.data.store import TokenStore, prepare
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError, shown
from lit_small_lm.plugin import Component
from lit_small_lm.training.lit import LanguageModule

TEXT = """Tokenise the data of a configuration, so that training can begin at once. Takes the options of fit, of which
only data.* matter: -c CONFIG, --data.source.path PATH and so on. A preparation that was interrupted goes on with the
same command; one that is done is not done again."""
COLUMNS = ("documents", "tokens", "bytes", "exact", "near", "in_train")


def parser(command: str) -> Options:
    """The command's own options; those of the configuration stand beside them."""
    parser = Options(prog=f"lit-small-lm {command}", description=TEXT)
    parser.add_argument("--verify", action="store_true", help="also read every file again and compare its SHA-256")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_plugins()
    return parser


def run(command: str, argv: list[str]) -> int:
    """Prepare every component; prints a summary, or one JSON object with `--json`."""
    quiet()
    options, rest = parser(command).parse_known_args(with_packaged_files(argv))
    discover(options.plugins)
    known = {**roots(), "model": slot(LanguageModule, None)}
    data = data_of(check_request(rest, known, beside=list(vars(options))).tree.get("data", {}))
    refuse_file("data.cache_dir", data.cache)
    try:
        stores = prepared(data)
        for _, store in stores if options.verify else []:
            report.say(f"verified: {store.verify():,} bytes of {store.folder}")
    except KeyboardInterrupt:
        again = shlex.join([command, *argv])
        report.say(f"stopped by SIGINT; what was tokenised is kept; go on with: {script('lit-small-lm')} {again}")
        return 130
    described = [{"component": part.name, "weight": part.weight, **record(store)} for part, store in stores]
    print(json.dumps({"stores": described}) if options.json else "\n".join(table(described)))
    return 0


def token_data(tree: dict[str, Any]) -> TokenData:
    """The data module that the data section of a checked request describes."""
    options = options_of(TokenData)
    given = {
        name: options[name].kind.from_dict(value) if options[name].form == "slot" else value
        for name, value in tree.items()
    }
    return TokenData(**given)


def data_of(tree: dict[str, Any]) -> TokenData:
    """The data module whose source is to be tokenised. Raises RequestError where a store is given instead."""
    data = token_data(tree)
    if data.store is not None:
        raise RequestError(f"data.store: {shown(data.store)} is a prepared store; prepare makes one of data.source")
    return data


def prepared(data: TokenData) -> list[tuple[Component, TokenStore]]:
    """The store of every component, made now where it is not there."""
    encoder, stores = encoder_of(data.source, data.tokenizer, data.cache, None), []
    for component in data.source.components():
        with naming(component.name):
            progress = Shown(component.name or "data")
            stores.append((component, prepare(component.source, encoder, data.cache, progress, data.tokenizer)))
            progress.done()
    return stores


def record(store: TokenStore) -> dict[str, Any]:
    """What the summary says of a store."""
    manifest = store.summary()
    kept = ("fingerprint", "tokenizer", "vocab_size", "rule", "empty", "splits")
    return {"folder": str(store.folder), **{name: manifest[name] for name in kept}}


def table(stores: Sequence[dict[str, Any]]) -> list[str]:
    """The summary in lines."""
    heads = ("component", "split", "documents", "tokens", "bytes", "duplicates", "near ones", "near train")
    rows = [
        (store["component"] or "data", split, *(f"{counts[name]:,}" for name in COLUMNS))
        for store in stores
        for split, counts in store["splits"].items()
    ]
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = [
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)) for row in (heads, *rows)
    ]
    for store in stores:
        name = store["component"] or "data"
        lines.append(f"{name}: {store['empty']:,} empty documents skipped; {HELD_OUT[store['rule']]}")
        lines.append(f"{name}: {store['folder']}")
    return lines


HELD_OUT = {
    "whole": "whole documents are held out, by their text",
    "ends": "too few documents to hold out whole ones: the end of each is held out",
    "least": "whole documents are held out, by the order of their digests",
}
