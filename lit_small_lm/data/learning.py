"""Which text a tokenizer is learned from: training documents of all components, by their weights, and not too many.

Of a large source, documents from the beginning of parts that lie evenly spread are taken. The choice is a function of
the source alone.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_small_lm.data.cache import key_of, replace_file
from lit_small_lm.data.encoding import cuts
from lit_small_lm.data.splits import Splits
from lit_small_lm.plugin import Encoder, Source, SourcePart, Tokenizer

VERSION = 2
LEARN_BYTES = 256 * 10**6
"""Characters of text that a tokenizer is learned from at most."""
FEW_PARTS = 16
"""Parts that are read from at least, where there are so many."""


def learned(source: Source, tokenizer: Tokenizer, cache: Path, limit: int = LEARN_BYTES) -> Encoder:
    """The encoder learned from training documents of all components, `limit` characters of them at most; kept."""
    content = [(part.weight, part.source.fingerprint()) for part in source.components()]
    asked = json.dumps([VERSION, content, limit, tokenizer.to_dict()], sort_keys=True)
    file = cache / "tokenizers" / f"{key_of(asked)}.json"
    if file.exists():
        return tokenizer.restore(json.loads(file.read_text()))
    read: list[str] = []
    encoder = tokenizer.learn(_noted(training_texts(source, limit), read))
    if read:  # one that learned nothing, such as a tokenizer from a file, is as quickly had again
        replace_file(file, json.dumps(encoder.record()))
    return encoder


def _noted(texts: Iterator[str], read: list[str]) -> Iterator[str]:
    """The texts; that one was asked for is noted in `read`."""
    for text in texts:
        read[:] = ["text"]
        yield text


def training_texts(source: Source, limit: int) -> Iterator[str]:
    """Training text of every component by its weight, `limit` characters in all; long documents come in pieces."""
    for component in source.components():
        yield from _texts_of(component.source, round(limit * component.weight))


def _texts_of(source: Source, limit: int) -> Iterator[str]:
    parts, splits = source.parts(), Splits.of(source)
    chosen = chosen_parts(parts, limit)
    sizes = [parts[part].size or 1 for part in chosen]
    taken = 0
    for number, part in enumerate(chosen, 1):
        share = limit * sum(sizes[:number]) // sum(sizes)
        for text in _training_cuts(source, splits, part):
            if taken >= share:
                break
            yield text[: share - taken]
            taken += len(text[: share - taken])


def _training_cuts(source: Source, splits: Splits, part: int) -> Iterator[str]:
    for document in source.read(part):
        pieces = [piece for piece in splits.digested(document) if piece.split == "train"]
        yield from (cut.text for cut in cuts(pieces))


def chosen_parts(parts: Sequence[SourcePart], limit: int) -> list[int]:
    """The parts to read from: all where they are no more than `limit` bytes, else some that lie evenly spread."""
    total, wanted = sum(part.size for part in parts), len(parts)
    if not total or total > limit:
        typical = max(1, total // len(parts)) if total else limit
        wanted = min(len(parts), max(FEW_PARTS, limit // typical))
    return [i * len(parts) // wanted for i in range(wanted)]
