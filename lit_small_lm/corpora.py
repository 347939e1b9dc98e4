"""What a corpus is made of, to the data module: documents, the sources they come from, and tokenizers."""

import abc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lit_small_lm.batch import Specials
from lit_small_lm.spec import Spec


class Encoder(abc.ABC):
    """A tokenizer that has been trained or loaded: text to ids and back."""

    specials: Specials
    """Its vocabulary size and special ids."""

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; special tokens written out in a text are ordinary text."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ids left out."""

    @abc.abstractmethod
    def byte_lengths(self) -> Tensor:
        """(V,) UTF-8 bytes that each id stands for; 0 for special ids."""

    @abc.abstractmethod
    def record(self) -> dict[str, object]:
        """Plain data that `Tokenizer.restore` turns back into this encoder."""

    def with_mask(self) -> "Encoder":
        """The same with a mask token of its own: in a free row of the network, or else in a new one at the end; itself
        where it has one, or cannot be given one."""
        return self

    def tokenizer_json(self) -> str | None:
        """A tokenizer.json that gives every text the same ids, to be exported; None: there is none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Spec):
    """A way to turn text into ids; learns from a corpus where it has to."""

    @abc.abstractmethod
    def learn(self, texts: Iterator[str]) -> Encoder:
        """The encoder learned from the training texts."""

    @abc.abstractmethod
    def restore(self, record: Mapping[str, object]) -> Encoder:
        """The encoder that `Encoder.record` described."""


class Document(NamedTuple):
    """One text, and what a message calls it (a path, or a file and a row)."""

    name: str
    text: str
    given: tuple[tuple[int, int], ...] = ()
    """Runs of characters (from, to), in order, that a model is given, such as a prompt: they are read, but not
    predicted, masked or scored, and no token crosses an edge of one. A document that has some is never cut."""


class SourcePart(NamedTuple):
    """A piece of a source that is read from its beginning, such as a file."""

    name: str
    """What a message calls it."""
    size: int
    """Bytes to read, for progress; 0 if unknown."""
    digest: str
    """SHA-256 of its content, or a revision that stands for it."""
    documents: int = 0
    """How many documents it holds, for progress; 0 if unknown."""


class Component(NamedTuple):
    """A source of a mixture, and its share of the training tokens."""

    name: str
    source: "Source"
    weight: float


@dataclass(frozen=True, kw_only=True)
class Source(Spec):
    """Where documents come from. Which split a document belongs to is decided by its text, not by the source."""

    @abc.abstractmethod
    def parts(self) -> Sequence[SourcePart]:
        """The pieces, always in the same order. Raises RequestError if there is nothing to read."""

    @abc.abstractmethod
    def read(self, part: int) -> Iterator[Document]:
        """The documents of a piece, one after another, always in the same order.

        Raises:
            RunError: it is damaged or was changed meanwhile; the piece (and row) is named.
        """

    def fingerprint(self) -> str:
        """A digest of the content of all pieces."""
        digests = "".join(f"{part.digest}\n" for part in self.parts())
        return hashlib.sha256(digests.encode()).hexdigest()

    def components(self) -> Sequence[Component]:
        """What it is mixed from; a plain source is its own only component."""
        return [Component("", self, 1.0)]
