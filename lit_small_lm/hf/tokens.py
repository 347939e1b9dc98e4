"""The tokenizer of a public folder, both ways: tokenizer.json, and the special tokens that its configuration names.

The network keeps its rows. A padding and a mask token that the public tokenizer lacks get rows that no token has;
where there are none, the model has no such tokens, unless the network is given rows for them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library

from lit_small_lm.data.tokenizer import (
    MASK,
    PAD,
    BPEEncoder,
    IdEncoder,
    Ids,
    Pretrained,
    lossless,
    prepare_byte_level,
    unused,
)
from lit_small_lm.errors import RequestError, first_line, nearest, shown
from lit_small_lm.folder import TOKENIZER, read_json, refuse_large, within
from lit_small_lm.plugin import Encoder, Specials, Tokenizer

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
ID = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Found:
    """The tokenizer that came with a model."""

    spec: Tokenizer
    encoder: Encoder
    notes: tuple[str, ...] = ()
    """What a user should know of it."""


class Unsuitable(Exception):
    """A tokenizer that our encoder cannot be; the message says why."""


def read_tokenizer(folder: Path, config: Mapping[str, Any], rows: int, end: str | None = None) -> Found:
    """The tokenizer of a folder; where none is there that works on bytes, one that takes ids alone.

    Args:
        folder: of the public model.
        config: its config.json.
        rows: of the network's embedding.
        end: the token that ends a document, or its id; None: the one that the configuration names.

    Raises:
        RequestError: it is not known which token ends a document, or the file is no tokenizer.
    """
    if not (folder / TOKENIZER).exists():
        return _ids_only(config, rows, end, f"no {TOKENIZER}")
    try:
        return _byte_level(folder, config, rows, end)
    except Unsuitable as error:
        return _ids_only(config, rows, end, str(error))


# --------------------------------------------------------------------------------------------------------- with text
def _byte_level(folder: Path, config: Mapping[str, Any], rows: int, end: str | None) -> Found:
    file = within(folder, TOKENIZER)
    library = _library(file)
    size = 1 + max(library.get_vocab().values())
    if size > rows:
        raise Unsuitable(f"{shown(str(file))} has {size:,} ids, but the network {rows:,} rows")
    names = _Names(folder, config, library)
    last = _text_end(library, end) if end is not None else names.of("eos") or names.only()
    begin = names.of("bos", last)
    pad = names.of("pad", last, begin)
    mask = names.of("mask", last, begin, pad)
    pad, mask = _with_free_rows(library, pad, mask, rows - size)
    encoder = BPEEncoder(library.to_str(), (last, pad, mask), begin, rows)
    spec = Pretrained(path=str(file), end=last)
    return Found(spec, lossless(encoder, str(file)), (*names.notes, *_missing(encoder.specials)))


def _library(file: Path) -> Library:
    refuse_large(file)
    try:
        library = Library.from_file(str(file))
    except Exception as error:  # the library raises plain Exceptions
        raise RequestError(f"{shown(str(file))}: {first_line(error)}") from None
    try:
        prepare_byte_level(library, file.name)
    except RequestError as error:
        raise Unsuitable(str(error).removeprefix("data.tokenizer.path: ")) from None
    return library


def _with_free_rows(library: Library, pad: str | None, mask: str | None, free: int) -> tuple[str | None, str | None]:
    """The padding and the mask token; those that are missing become new tokens as long as rows are free."""
    found = []
    for name, usual in ((pad, PAD), (mask, MASK)):
        if name is None and free > 0:
            name, free = unused(usual, library.get_vocab()), free - 1
            library.add_special_tokens([name])
        found.append(name)
    return found[0], found[1]


class _Names:
    """The special tokens that a folder names, as far as its tokenizer has them as such."""

    def __init__(self, folder: Path, config: Mapping[str, Any], library: Library) -> None:
        files = [read_json(folder / name) for name in SETTINGS if (folder / name).exists()]
        self.config, self.files, self.library = config, files, library
        self.special = [t.content for t in library.get_added_tokens_decoder().values() if t.special]
        self.notes: list[str] = []
        """What was named and is no special token."""

    def of(self, role: str, *taken: str | None) -> str | None:
        """The token of a role ("eos", "bos", "pad", "mask") that is none of those taken, or None."""
        for where, token in self._candidates(role):
            if token in self.special:
                if token not in taken:
                    return token
            elif token is not None:
                self.notes.append(f"{where} is {shown(token)!r}, an ordinary token: it is not taken for {role}")
        return None

    def only(self) -> str:
        """The one special token there is. Raises RequestError if there are several, or none."""
        if len(self.special) == 1:
            return self.special[0]
        known = ", ".join(self.special[:8]) or "none"
        raise RequestError(f"--end: missing; no file says which token ends a document; special tokens: {known}")

    def _candidates(self, role: str) -> Iterator[tuple[str, str | None]]:
        for index in ids_of(self.config, role):
            yield f"config.json: {role}_token_id {index}", self.library.id_to_token(index)
        for content in self.files:
            value = content.get(f"{role}_token")
            value = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(value, str):
                yield f"{role}_token", value


def ids_of(config: Mapping[str, Any], role: str) -> list[int]:
    """The ids that a config.json gives a special token; some name several."""
    value = config.get(f"{role}_token_id")
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31]


def _text_end(library: Library, asked: str) -> str:
    token = asked if library.token_to_id(asked) is not None else None
    if token is None and (index := _id_in(asked)) is not None:
        token = library.id_to_token(index)
    if token is None:
        special = [t.content for t in library.get_added_tokens_decoder().values() if t.special]
        raise RequestError(f"--end: {shown(asked)!r} is no token of the tokenizer{nearest(asked, special)}")
    return token


def _id_in(text: str) -> int | None:
    """The id that a text is, in digits; None if it is none."""
    return int(text) if ID.fullmatch(text) else None


def _missing(specials: Specials) -> Iterator[str]:
    lacking = [name for name, index in (("padding", specials.pad), ("mask", specials.mask)) if index is None]
    if lacking:
        yield f"the tokenizer has no {' and no '.join(lacking)} token, and the network no free row for one"


# ------------------------------------------------------------------------------------------------------ without text
def _ids_only(config: Mapping[str, Any], rows: int, end: str | None, why: str) -> Found:
    last = _id_end(config, rows, end)
    begin = next((i for i in ids_of(config, "bos") if i < rows and i != last), None)
    pad = next((i for i in ids_of(config, "pad") if i < rows and i not in (last, begin)), None)
    encoder = IdEncoder(Specials(rows, last, pad, None, begin))
    note = f"{why}: the model takes and gives token ids, no text"
    return Found(Ids(vocab_size=rows, end=last, begin=begin), encoder, (note,))


def _id_end(config: Mapping[str, Any], rows: int, end: str | None) -> int:
    if end is None:
        named = [i for i in ids_of(config, "eos") if i < rows]
        if not named:
            value = shown(json.dumps(config.get("eos_token_id")))
            raise RequestError(
                f"--end: missing; eos_token_id of config.json is {value}; allowed: an id from 0 to {rows - 1}"
            )
        return named[0]
    index = _id_in(end)
    if index is None or index >= rows:
        raise RequestError(f"--end: {shown(end)!r}; without a tokenizer allowed: an id from 0 to {rows - 1}")
    return index


def with_new_rows(found: Found) -> Found:
    """The same with a padding and a mask token, for which the network has to have rows of its own at the end."""
    encoder, specials = found.encoder, found.encoder.specials
    rows = specials.vocab_size + [specials.pad, specials.mask].count(None)
    if isinstance(encoder, IdEncoder):
        pad = specials.vocab_size if specials.pad is None else specials.pad
        mask = rows - 1 if specials.mask is None else specials.mask
        return Found(found.spec, IdEncoder(specials._replace(vocab_size=rows, pad=pad, mask=mask)))
    library = Library.from_str(encoder.record()["json"])
    last, pad, mask, begin = (None if i is None else library.id_to_token(i) for i in specials[1:5])
    pad, mask = _with_free_rows(library, pad, mask, rows - 1 - max(library.get_vocab().values()))
    return Found(found.spec, BPEEncoder(library.to_str(), (last, pad, mask), begin, rows))
