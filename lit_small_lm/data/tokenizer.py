"""Tokenizers: raw bytes, and byte-level BPE trained on the corpus by the `tokenizers` library.

Special ids come first: 0 ends (and begins) a document, 1 pads, 2 is the mask reserved for diffusion. A special token
written out in a text is encoded as the ordinary characters it consists of.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Encoder, Specials, Tokenizer, setting

END, PAD, MASK = SPECIALS = ("<|end|>", "<|pad|>", "<|mask|>")


def digest(encoder: Encoder) -> str:
    """SHA-256 of everything that decides the ids of a text."""
    return hashlib.sha256(json.dumps(encoder.record(), sort_keys=True).encode()).hexdigest()


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
    """A trained byte-level BPE, held as the `tokenizers` library's JSON.

    Raises:
        RequestError: the JSON lacks one of the special tokens.
    """

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer as Library

        self._json = text
        self._library = Library.from_str(text)
        self._library.encode_special_tokens = True
        ids = [self._library.token_to_id(token) for token in SPECIALS]
        if None in ids:
            missing = SPECIALS[ids.index(None)]
            raise RequestError(f"tokenizer: it has no {missing} token; it needs: {', '.join(SPECIALS)}")
        self.specials = Specials(self._library.get_vocab_size(), *ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._library.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        return self._library.decode([i for i in ids if i not in self.specials[1:]])

    def byte_lengths(self) -> Tensor:
        # In the byte-level alphabet every character of a token stands for one byte.
        lengths = torch.zeros(self.specials.vocab_size, dtype=torch.long)
        for token, index in self._library.get_vocab().items():
            lengths[index] = 0 if token in SPECIALS else len(token)
        return lengths

    def record(self) -> dict[str, object]:
        return {"type": "bpe", "json": self._json}
