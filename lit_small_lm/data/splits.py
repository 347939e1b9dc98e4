"""Which split a text belongs to: decided by the text alone, so equal documents never stand on both sides.

A document whose SHA-256 is 0 modulo 40 is for validation, 1 for the test. Where that would leave a split of a small
corpus empty (one file, or a handful), the held-out parts are the end of every document instead; where documents cannot
be cut, because a part of each is given, the documents with the least digests.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from lit_small_lm.data.given import check_given
from lit_small_lm.errors import RequestError, shown
from lit_small_lm.plugin import Document, Source, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHARES = 40
"""One document in so many is for validation, one for the test."""
FEW = 400
"""Documents from which on no split of a corpus is expected to be empty."""
ENDS = 0.05
"""Of every document, once for validation and once for the test, where documents are too few to hold out whole ones; of
documents that are never cut, that share of them."""
SLICE = 1 << 20
Rule = Literal["whole", "ends", "least"]


class Piece(NamedTuple):
    """A document, or a part of it, that belongs to one split."""

    split: Split
    text: str
    digest: int
    """The first 64 bits of the SHA-256 of its text."""
    given: tuple[tuple[int, int], ...] = ()
    """See `Document`."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """How a corpus is split."""

    rule: Rule
    """whole: documents by the digest of their text; ends: the end of every document is held out; least: the documents
    with the least digests are."""
    limits: tuple[int, int] = (0, 0)
    """For "least": digests below the first are for validation, others below the second for the test."""

    @staticmethod
    def of(source: Source) -> "Splits":
        """The rule for a source, from its first 400 documents.

        Raises:
            RequestError: it holds no text, or too few documents that cannot be cut.
        """
        digests, whole = [], False
        for document in islice(full_documents(source), FEW):
            digests.append(digest_of(document.text))
            whole |= bool(document.given)
        if not digests:
            raise RequestError(f"data.source: {shown(str(source))} holds no text")
        if len(digests) == FEW or len(set(map(split_of, digests))) == len(SPLITS):
            return Splits("whole")
        return Splits.least(digests) if whole else Splits("ends")

    @staticmethod
    def least(digests: Sequence[int]) -> "Splits":
        """A twentieth of these documents each for validation and for the test, one at least."""
        found = sorted(set(digests))
        if len(found) < len(SPLITS):
            raise RequestError(
                f"data.source: {len(found)} different documents, which cannot be cut; needed: {len(SPLITS)} at least, "
                "to train, to validate and to test on"
            )
        share = max(1, round(len(found) * ENDS))
        return Splits("least", (found[share], found[2 * share]))

    def pieces(self, document: Document) -> list[tuple[Split, str]]:
        """The split and text of each piece of a document; nothing of an empty one."""
        return [(piece.split, piece.text) for piece in self.digested(document)]

    def digested(self, document: Document) -> list[Piece]:
        """As `pieces`, with the digest of each text."""
        if is_empty(document.text):
            return []
        if self.rule != "ends":
            check_given(document)
            digest = digest_of(document.text)
            return [Piece(self._of_whole(digest), document.text, digest, document.given)]
        return [Piece(split, text, digest_of(text)) for split, text in split_ends(document.text)]

    def _of_whole(self, digest: int) -> Split:
        if self.rule == "whole":
            return split_of(digest)
        validation, test = self.limits
        return "validation" if digest < validation else "test" if digest < test else "train"


def full_documents(source: Source) -> Iterator[Document]:
    """Every document of a source that is not empty, in order."""
    for part in range(len(source.parts())):
        for document in source.read(part):
            if not is_empty(document.text):
                yield document


def is_empty(text: str) -> bool:
    """Whether a text is nothing but white space."""
    return not text or text.isspace()


def digest_of(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text; of a long one no second copy is made."""
    digest = hashlib.sha256()
    for start in range(0, len(text), SLICE):
        digest.update(text[start : start + SLICE].encode())
    return int.from_bytes(digest.digest()[:8], "big")


def split_of(digest: int) -> Split:
    """The split of a whole document, by the digest of its text."""
    number = digest % SHARES
    return "validation" if number == 0 else "test" if number == 1 else "train"


def split_ends(text: str) -> Iterator[tuple[Split, str]]:
    """The last twentieth of a text is the test, the one before it validation."""
    share = max(1, round(len(text) * ENDS))
    first, second = max(0, len(text) - 2 * share), len(text) - share
    pieces = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
    return ((split, piece) for split, piece in pieces.items() if not is_empty(piece))
