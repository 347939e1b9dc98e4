"""How far a preparation is, how fast, and how long it will take."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lit_small_lm.data.encoding import Encoded, ReadTo, TextBatch
from lit_small_lm.plugin import Source, SourcePart


class Progress(NamedTuple):
    """How far a preparation is."""

    share: float
    """Of the source that has been read, 0 to 1; what an earlier, interrupted preparation did counts."""
    documents: int
    """Read by this process, empty ones included; so are tokens, bytes and seconds."""
    tokens: int
    bytes: int
    """Of text, in UTF-8."""
    seconds: float
    left: float | None
    """Seconds left at this rate; None as long as nothing can be said."""


Tell = Callable[[Progress], None]


class Meter:
    """Counts what has been read of a source, and tells.

    Args:
        source: what is read.
        start: where reading begins.
        tell: called with each progress, or None.
    """

    def __init__(self, source: Source, start: ReadTo, tell: Tell | None) -> None:
        self.parts, self.tell = source.parts(), tell
        self.documents = self.tokens = self.bytes = self._inside = 0
        self.part = start.part
        self._start = self.share(start)
        self._begun = time.monotonic()

    def small(self, limit: int) -> bool:
        """Whether the whole source has a known size below `limit` bytes."""
        return 0 < sum(part.size for part in self.parts) < limit

    def read(self, batch: TextBatch, found: Sequence[Encoded]) -> None:
        """Count a batch, and tell."""
        size = sum(part.size for part in found)
        self.documents += batch.documents
        self.tokens += sum(len(part.tokens) for part in found)
        self.bytes += size
        self._inside = size + (self._inside if batch.position.part == self.part else 0)
        self.part = batch.position.part
        if self.tell is not None:
            self.tell(self._progress(self.share(batch.position)))

    def share(self, position: ReadTo) -> float:
        """Of all bytes to read, those before a position; parts of unknown size count alike."""
        sizes = [part.size or 1 for part in self.parts]
        before = sum(sizes[: position.part])
        if position.part < len(sizes):
            before += sizes[position.part] * self._share_of_part(self.parts[position.part], position)
        return min(1.0, before / sum(sizes))

    def _share_of_part(self, part: SourcePart, position: ReadTo) -> float:
        if part.documents:
            return min(1.0, position.document / part.documents)
        return min(1.0, self._inside / part.size) if part.size else 0.0

    def _progress(self, share: float) -> Progress:
        seconds = time.monotonic() - self._begun
        gained = share - self._start
        left = seconds * (1 - share) / gained if gained > 0 and seconds > 0 else None
        return Progress(share, self.documents, self.tokens, self.bytes, seconds, left)
