"""Tokenizers: raw bytes, and byte-level BPE by the `tokenizers` library, learned from the corpus or already there.

Where they are our own, special ids come first: 0 ends (and begins) a document, 1 pads, 2 is the mask reserved for
diffusion. A special token written out in a text is encoded as the ordinary characters it consists of.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.data.hub import may_be_on_a_hub
from lit_small_lm.errors import RequestError, RunError, first_line, not_known, shown
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
    vocab_size, specials = encoder.specials.vocab_size, encoder.specials._asdict()
    del specials["vocab_size"]
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
        return BPEEncoder(str(record["json"]))


class BPEEncoder(Encoder):
    """A byte-level BPE, held as the `tokenizers` library's JSON.

    Args:
        text: the JSON.
        names: its end, pad and mask token; their ids may be anywhere.

    Raises:
        RequestError: the JSON lacks one of them.
    """

    def __init__(self, text: str, names: Sequence[str] = SPECIALS) -> None:
        from tokenizers import Tokenizer as Library

        self._json, self._names = text, tuple(names)
        self.library = Library.from_str(text)
        """The library's own tokenizer."""
        self.library.encode_special_tokens = True
        self._vocabulary = self.library.get_vocab()
        missing = [name for name in names if name not in self._vocabulary]
        if missing:
            raise RequestError(f"tokenizer: it has no {missing[0]} token; it needs: {', '.join(names)}")
        size = 1 + max(self._vocabulary.values())  # ids may have gaps
        self.specials = Specials(size, *(self._vocabulary[name] for name in names))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self.library.decode([i for i in ids if i not in self.specials[1:]])

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

    def record(self) -> dict[str, object]:
        named = {} if self._names == SPECIALS else {"specials": list(self._names)}
        return {"type": "bpe", "json": self._json, **named}


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
        _check_byte_level(json.loads(library.to_str()), str(self.path))
        library.no_truncation()
        library.no_padding()
        library.normalizer = None
        vocabulary, added = library.get_vocab(), library.get_added_tokens_decoder().values()
        if self.end not in vocabulary:
            raise not_known("data.tokenizer.end", self.end, [token.content for token in added], "token of its own")
        pad, mask = (_unused(name, vocabulary) for name in (PAD, MASK))
        library.add_special_tokens([pad, mask])
        plain = [token.content for token in added if not token.special]
        return _lossless(BPEEncoder(library.to_str(), (self.end, pad, mask)), plain, str(self.path))

    def restore(self, record: Mapping[str, object]) -> Encoder:
        return BPEEncoder(str(record["json"]), list(record["specials"]))

    def _loaded(self) -> Any:
        from tokenizers import Tokenizer as Library

        if not self.path:
            raise RequestError(f"data.tokenizer.path: {self.path!r}; allowed: a tokenizer.json, a folder or a hub name")
        file = Path(self.path).expanduser()
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


def _unused(name: str, vocabulary: Mapping[str, int]) -> str:
    """A token's name that the vocabulary has no token for."""
    names = (name, *(f"{name[:-2]}_{number}|>" for number in range(2, len(vocabulary) + 3)))
    return next(found for found in names if found not in vocabulary)


def _lossless(encoder: Encoder, plain: Sequence[str], path: str) -> Encoder:
    """The encoder. Raises RequestError if a text with spaces, signs and rare characters does not come back from it."""
    text = "  A b\tc\n\n 1234567 don't (x+y)!! \u00e9\u4e16\U0001f642 \x00" + "".join(SPECIALS)
    text += " ".join(plain)
    ids = encoder.encode([text])[0]
    if encoder.decode(ids) != text or int(encoder.byte_lengths()[ids].sum()) != len(text.encode()):
        raise RequestError(f"data.tokenizer.path: {shown(path)}: texts do not come back from it as they were")
    return encoder
