"""What `analyze` and `prune` share: a trained model, and held-out text that it is asked about."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_small_lm.analysis.questions import Questions, ask
from lit_small_lm.analysis.subject import Subject
from lit_small_lm.checkpoint import LanguageModel, load
from lit_small_lm.cli import report
from lit_small_lm.cli.lit import quiet, roots
from lit_small_lm.cli.options import Number, Options
from lit_small_lm.cli.preparation import Shown
from lit_small_lm.cli.prepare import token_data
from lit_small_lm.cli.request import Request, check_request
from lit_small_lm.cli.run_options import with_packaged_files
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.loader import Rows
from lit_small_lm.data.plan import Wanted
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.plugin import Batch

ROWS = 64
AT_ONCE = 4096
"""Positions in one forward pass."""
DEVICES = ("auto", "cpu", "cuda")
MEMORY = re.compile("not enough memory|can't allocate memory|out of memory", re.IGNORECASE)
"""What torch says where there is none left."""
SPLITS = ("train", "validation", "test")
COUNT = Number(int, low=1, high=2**31)


def add_text_options(parser: Options) -> None:
    """Options that say which text, how much of it, and where it is computed."""
    parser.add_argument("--split", choices=SPLITS, default="validation", help="of the text (default validation)")
    parser.add_argument(
        "--rows", type=COUNT, default=ROWS, help=f"rows of data.seq_len, spread over the split (default {ROWS})"
    )
    parser.add_argument("--documents", type=COUNT, help="no more rows once so many documents have been seen")
    parser.add_argument(
        "--draws", type=COUNT, default=4, help="noise draws, for objectives that have noise (default 4)"
    )
    parser.add_argument(
        "--seed", type=Number(int, low=0, high=2**31), default=0, help="same seed, same result (default 0)"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where it is computed (default auto)")
    parser.add_plugins()


def check_text_options(args: argparse.Namespace) -> None:
    """Raise RequestError for a device that is not there."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device: cuda; there is no usable GPU here; allowed: auto, cpu")


@dataclass(frozen=True)
class Examined:
    """A model, and the options of its data section."""

    model: LanguageModel
    name: str
    request: Request
    asked: bool
    """Whether the command line says which text."""

    def subject(self, args: argparse.Namespace) -> tuple[Subject, dict[str, Any]]:
        """The network with its questions, and what there is to say of the text."""
        data = self.data()
        data.setup("validate")
        self._warn(data)
        rows = data.rows(args.split)
        if not len(rows):
            raise RequestError(f"--split: {args.split} of this text is empty")
        batches = list(chosen(rows, args.rows, args.documents))
        device = self.model.net.embed.weight.device.type
        questions: Questions = ask(self.model.objective, batches, args.seed, args.draws, device)
        count = sum(len(batch.tokens) for batch in batches)
        text = {"split": args.split, "rows": count, "row_length": data.seq_len, "rows_in_split": len(rows)}
        subject = Subject(self.model.net, questions, args.seed)
        self._try(subject, data.seq_len)
        return subject, text

    def _try(self, subject: Subject, seq_len: int) -> None:
        """Raise RunError where the network has no loss on the text that its layers could be seen by."""
        try:
            loss = subject.loss(subject.full).value
        except RuntimeError as error:
            if not MEMORY.search(str(error)):
                raise
            raise RunError(f"data.seq_len: {seq_len}; one row of so many positions does not fit in memory") from None
        if not math.isfinite(loss):
            raise RunError(f"{self.name}: its loss on this text is {loss}; nothing that layers do can be read off that")

    def data(self) -> TokenData:
        """The data module, with the model's tokenizer."""
        data, limit = token_data(self.request.tree["data"]), self.model.net.limit()
        if limit is not None and data.seq_len > limit:
            raise RequestError(f"data.seq_len: {data.seq_len}; the model has {limit} positions")
        data.encoder_record = self.model.record["tokenizer"]["record"]
        data.tell = Shown("data")
        return data

    def _warn(self, data: TokenData) -> None:
        corpus = self.model.record["corpus"]
        if corpus is None and not self.asked:
            report.say(
                f"note: the run names no text of its own; {type(data.source).__name__} is taken as it stands, "
                "another with --data.source.path PATH"
            )
        elif corpus not in (None, data.fingerprint()) and not self.asked:
            report.say("note: data.source: the text, and what of it is held out, is not that of the checkpoint")


def examined(args: argparse.Namespace, rest: Sequence[str]) -> Examined:
    """The model that a command names, and its data section with the changes asked for.

    Raises:
        RequestError: an option that there is not, a value out of range, or nothing to load.
    """
    quiet()
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(args.path, args.plugins, device)
    base = yaml.safe_dump({"data": recorded_config(model).get("data") or {}})
    known = {"data": roots()["data"]}
    request = check_request(with_packaged_files(list(rest)), known, base=base, beside=list(vars(args)))
    request = request.with_tokenizer(model.record["tokenizer"]["spec"])
    for notice in request.notices:
        report.say(notice)
    return Examined(model, name_of(args.path), request, bool(rest))


def recorded_config(model: LanguageModel) -> dict[str, Any]:
    """The configuration of the model's run, as plain data; empty if it has none. Raises RunError: it is damaged."""
    try:
        config = yaml.safe_load(model.record.get("config") or "") or {}
        sections = [config[name] or {} for name in ("data", "model") if name in config]
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise RunError(f"checkpoint: its record is damaged (config: {type(error).__name__})") from error
    if not all(isinstance(section, dict) for section in (config, *sections)):
        raise RunError("checkpoint: its record is damaged (config: data and model are no sections)")
    return config


def name_of(path: Path) -> str:
    """How a run or checkpoint is called: its folder's name, and the file's."""
    path = path.absolute()
    return path.name if path.is_dir() else f"{path.parent.parent.name}/{path.name}"


def chosen(rows: Rows, count: int, documents: int | None) -> list[Batch]:
    """`count` rows spread evenly over a split, in its order, as batches; fewer once `documents` have been seen.

    Raises:
        RunError: a row cannot be read.
    """
    count = min(count, len(rows))
    numbers = [index * len(rows) // count for index in range(count)]
    if documents is not None:
        numbers = _few(rows, numbers, documents)
    size = max(1, AT_ONCE // rows.components[0].seq_len)
    return [_batch(rows, numbers[at : at + size]) for at in range(0, len(numbers), size)]


def _few(rows: Rows, numbers: Sequence[int], documents: int) -> list[int]:
    seen: set[int] = set()
    for taken, number in enumerate(numbers):
        if len(seen) >= documents:
            return list(numbers[:taken])
        seen |= {index for index in _batch(rows, [number]).doc_ids.flatten().tolist() if index >= 0}
    return list(numbers)


def _batch(rows: Rows, numbers: Sequence[int]) -> Batch:
    batch = rows.__getitems__([Wanted(number, number) for number in numbers])
    if isinstance(batch, RunError):
        raise batch
    return batch
