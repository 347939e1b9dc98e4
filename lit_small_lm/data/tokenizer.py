"""Tokenizers: raw bytes, and byte-level BPE by the `tokenizers` library, learned from the corpus or already there.

Where they are our own, special ids come first: 0 ends (and begins) a document, 1 pads, 2 is the mask reserved for
diffusion. A special token written out in a text is encoded as the ordinary characters it consists of.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.data.hub import may_be_on_a_hub
from lit_small_lm.errors import RequestError, RunError, first_line, not_known, path_of, shown
from lit_small_lm.plugin import Encoder, Specials, Tokenizer, setting

END, PAD, MASK = SPECIALS = ("<|end|>", "<|pad|>", "<|mask|>")


def digest(encoder: Encoder) -> str:
    """SHA-256 of everything that decides the ids of a text."""
    return digest_of_record(encoder.record())


def digest_of_record(record: Mapping[str, object]) -> str:
    """`digest` of the encoder that a record restores."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_specials(encoder: Encoder) -> None:
    """Raises RequestError if special ids coincide or lie outside the vocabulary."""
    vocab_size, specials = encoder.specials.vocab_size, encoder.specials.ids()
    for name, index in specials.items():
        twins = [other for other, value in specials.items() if value == index and other != name]
        if twins:
            raise RequestError(f"tokenizer: the {name} and {twins[0]} tokens share id {index}")
        if not 0 <= index < vocab_size:
            raise RequestError(f"tokenizer: {name} id {index}; allowed: 0 to {vocab_size - 1}")


@dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """One id a UTF-8 byte, and the special ids: nothing to train."""

    def learn(self, texts: Iterator[str]) -> Encoder:
        return ByteEncoder()

    def restore(self, record: Mapping[str, object]) -> Encoder:
        return ByteEncoder()


class ByteEncoder(Encoder):
    """Byte b is id b + 3."""

    specials = Specials(vocab_size=259, end=0, pad=1, mask=2)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + len(SPECIALS) for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - len(SPECIALS) for i in ids if i >= len(SPECIALS)).decode(errors="replace")

    def byte_lengths(self) -> Tensor:
        return torch.tensor([0] * len(SPECIALS) + [1] * 256)

    def record(self) -> dict[str, object]:
        return {"type": "bytes"}

    def tokenizer_json(self) -> str:
        """A byte-level BPE without merges."""
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers

        alphabet = sorted(
            pre_tokenizers.ByteLevel.alphabet()
        )  # printable bytes stand for themselves, others come after
        own = {ord(letter) for letter in alphabet if ord(letter) < 256}
        others = [byte for byte in range(256) if byte not in own]
        letters = {**{chr(byte): byte for byte in own}, **dict(zip(alphabet[len(own) :], others, strict=True))}
        vocabulary = {letter: byte + len(SPECIALS) for letter, byte in letters.items()}
        library = Library(models.BPE({**{name: i for i, name in enumerate(SPECIALS)}, **vocabulary}, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        library.add_special_tokens(list(SPECIALS))
        return library.to_str()


@dataclass(frozen=True, kw_only=True)
class BPE(Tokenizer):
    """Byte-level byte-pair encoding (arXiv 1508.07909) learned from the training texts."""

    vocab_size: int = setting(2048, low=259, high=1 << 20, unit="ids")
    """Ids asked for, special ids included; a small corpus may not fill it."""

    def learn(self, texts: Iterator[str]) -> Encoder:
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return BPEEncoder(library.to_str())

    def restore(self, record: Mapping[str, object]) -> Encoder:
        return BPEEncoder.of(record)


class BPEEncoder(Encoder):
    """A byte-level BPE, held as the `tokenizers` library's JSON.

    Args:
        text: the JSON.
        names: its end, pad and mask token; their ids may be anywhere. The last two may be None.
        begin: the token that begins a document, where that is not the end token.
        vocab_size: rows of the network, where it has more than the tokenizer has ids.

    Raises:
        RequestError: the JSON lacks one of the tokens, or has more ids than the network rows.
    """

    def __init__(
        self,
        text: str,
        names: Sequence[str | None] = SPECIALS,
        begin: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        from tokenizers import Tokenizer as Library

        self._json, self._names, self._begin, self._rows = text, tuple(names), begin, vocab_size
        self.library = Library.from_str(text)
        """The library's own tokenizer."""
        self.library.encode_special_tokens = True
        self._vocabulary = self.library.get_vocab()
        asked = [name for name in (*names, begin) if name is not None]
        missing = [name for name in asked if name not in self._vocabulary]
        if missing:
            raise RequestError(f"tokenizer: it has no {missing[0]} token; it needs: {', '.join(asked)}")
        size = 1 + max(self._vocabulary.values())  # ids may have gaps
        rows = vocab_size or size
        if rows < size:
            raise RequestError(f"tokenizer: it has {size:,} ids, but the network {rows:,} rows")
        ids = (self._vocabulary.get(name) for name in (*names, begin))
        self.specials = Specials(rows, *ids, padding_from=size if size < rows else None)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "BPEEncoder":
        """The encoder that `record` described."""
        names = record.get("specials", SPECIALS)
        return cls(str(record["json"]), list(names), record.get("begin"), record.get("vocab_size"))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        special = self.specials.ids().values()
        return self.library.decode([i for i in ids if i not in special])

    def byte_lengths(self) -> Tensor:
        # In the byte-level alphabet every character of a token stands for one byte; added tokens are plain text.
        lengths, added = (
            torch.zeros(self.specials.vocab_size, dtype=torch.long),
            self.library.get_added_tokens_decoder(),
        )
        for token, index in self._vocabulary.items():
            lengths[index] = len(token)
        for index, token in added.items():
            lengths[index] = 0 if token.special else len(token.content.encode())
        return lengths

    def with_mask(self) -> "BPEEncoder":
        if self.specials.mask is not None:
            return self
        library = type(self.library).from_str(self._json)
        mask = unused(MASK, self._vocabulary)
        library.add_special_tokens([mask])
        end, pad, _ = self._names
        rows = None if self._rows is None else max(self._rows, 1 + max(library.get_vocab().values()))
        return BPEEncoder(library.to_str(), (end, pad, mask), self._begin, rows)

    def tokenizer_json(self) -> str:
        return self._json

    def record(self) -> dict[str, object]:
        named = {} if self._names == SPECIALS else {"specials": list(self._names)}
        others = {"begin": self._begin, "vocab_size": self._rows}
        return {"type": "bpe", "json": self._json, **named, **{k: v for k, v in others.items() if v is not None}}


@dataclass(frozen=True, kw_only=True)
class Pretrained(Tokenizer):
    """The byte-level BPE of a model that is already there, from a file or a hub, by the tokenizers library.

    A padding and a mask token are added as new ids. A normaliser is left out, so that every text comes back as it was.
    """

    path: str | None = None
    """A tokenizer.json, a folder that holds one, or the name of a model on the hub."""
    end: str = "<|endoftext|>"
    """Its token that ends a document."""
    revision: str | None = None
    """A commit, tag or branch of a model on the hub; null: the newest."""

    def learn(self, texts: Iterator[str]) -> Encoder:
        library = self._loaded()
        prepare_byte_level(library, str(self.path))
        vocabulary = library.get_vocab()
        if self.end not in vocabulary:
            added = [token.content for token in library.get_added_tokens_decoder().values()]
            raise not_known("data.tokenizer.end", self.end, added, "token of its own")
        pad, mask = (unused(name, vocabulary) for name in (PAD, MASK))
        library.add_special_tokens([pad, mask])
        return lossless(BPEEncoder(library.to_str(), (self.end, pad, mask)), str(self.path))

    def restore(self, record: Mapping[str, object]) -> Encoder:
        return BPEEncoder.of(record)

    def _loaded(self) -> Any:
        from tokenizers import Tokenizer as Library

        if not self.path:
            raise RequestError(f"data.tokenizer.path: {self.path!r}; allowed: a tokenizer.json, a folder or a hub name")
        file = path_of(self.path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.exists() and (file.suffix == ".json" or not may_be_on_a_hub(self.path)):
            raise RequestError(f"data.tokenizer.path: {shown(str(file))} does not exist")
        if file.exists():
            return _read(lambda: Library.from_file(str(file)), RequestError, shown(str(file)))
        what = f"{shown(self.path)} is no file here, and could not be had from the hub"
        return _read(lambda: Library.from_pretrained(self.path, revision=self.revision or "main"), RunError, what)


def _read(load: Callable[[], Any], error: type[Exception], what: str) -> Any:
    try:
        return load()
    except Exception as found:  # the library raises plain Exceptions
        raise error(f"data.tokenizer.path: {what}: {first_line(found)}") from None


@dataclass(frozen=True, kw_only=True)
class Ids(Tokenizer):
    """No text at all: the vocabulary of a model that came without a tokenizer, which takes and gives ids."""

    vocab_size: int = setting(259, low=1, high=1 << 30, unit="ids")
    """Rows of the network's embedding."""
    end: int = setting(0, low=0, high=1 << 30)
    """The id that ends a document."""
    begin: int | None = setting(None, low=0, high=1 << 30)
    """The id that begins a document; null: that of its end."""

    def learn(self, texts: Iterator[str]) -> Encoder:
        return IdEncoder(Specials(self.vocab_size, self.end, None, None, self.begin))

    def restore(self, record: Mapping[str, object]) -> Encoder:
        return IdEncoder(Specials(**record["specials"]))


class IdEncoder(Encoder):
    """Refuses text."""

    def __init__(self, specials: Specials) -> None:
        self.specials = specials

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        raise RequestError("text: this model has no tokenizer, it takes token ids; import one with its tokenizer.json")

    def decode(self, ids: Sequence[int]) -> str:
        raise RequestError("text: this model has no tokenizer, it gives token ids; import one with its tokenizer.json")

    def byte_lengths(self) -> Tensor:
        return torch.zeros(self.specials.vocab_size, dtype=torch.long)

    def with_mask(self) -> "IdEncoder":
        rows = self.specials.vocab_size
        if self.specials.mask is not None:
            return self
        return IdEncoder(self.specials._replace(vocab_size=rows + 1, mask=rows))

    def record(self) -> dict[str, object]:
        return {"type": "ids", "specials": self.specials._asdict()}


def prepare_byte_level(library: Any, path: str) -> None:
    """Make a tokenizer of the library give every text back: no normaliser, nothing cut off and nothing filled up.

    Raises:
        RequestError: it does not work on bytes.
    """
    _check_byte_level(json.loads(library.to_str()), path)
    library.no_truncation()
    library.no_padding()
    library.normalizer = None


def _check_byte_level(content: Mapping[str, Any], path: str) -> None:
    """Raises RequestError if a tokenizer does not work on bytes, whose texts would not all come back."""
    steps = _steps(content["pre_tokenizer"], "pretokenizers")
    level = next((step for step in steps if step["type"] == "ByteLevel"), None)
    why = ""
    if content["model"]["type"] != "BPE":
        why = f"it is a {content['model']['type']} model"
    elif level is None:
        why = f"it splits text by {', '.join(step['type'] for step in steps) or 'nothing'}"
    elif any(step.get("add_prefix_space") for step in steps):
        why = "it puts a space before every text"
    if why:
        raise RequestError(f"data.tokenizer.path: {shown(path)}: {why}; allowed: byte-level BPE without a prefix space")


def _steps(step: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return [inner for item in step[inside] for inner in _steps(item, inside)] if inside in step else [step]


def unused(name: str, vocabulary: Mapping[str, int]) -> str:
    """A token's name that the vocabulary has no token for."""
    names = (name, *(f"{name[:-2]}_{number}|>" for number in range(2, len(vocabulary) + 3)))
    return next(found for found in names if found not in vocabulary)


def lossless(encoder: BPEEncoder, path: str) -> BPEEncoder:
    """The encoder. Raises RequestError if a text with spaces, signs and rare characters does not come back from it."""
    text = "  A b\tc\n\n 1234567 don't (x+y)!! \u00e9\u4e16\U0001f642 \x00" + "".join(SPECIALS)
    added = encoder.library.get_added_tokens_decoder().values()
    text += " ".join(token.content for token in added if not token.special)
    ids = encoder.encode([text])[0]
    if encoder.decode(ids) != text or int(encoder.byte_lengths()[ids].sum()) != len(text.encode()):
        raise RequestError(f"data.tokenizer.path: {shown(path)}: texts do not come back from it as they were")
    return encoder
