"""The documents of all components as tokens: from token stores, or, where training streams, held-out ones alone."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lit_small_lm.data.cache import key_of, replace_file
from lit_small_lm.data.given import refuse_given
from lit_small_lm.data.learning import learned
from lit_small_lm.data.mixture import naming
from lit_small_lm.data.packing import ArrayStream, Stream
from lit_small_lm.data.progress import Tell
from lit_small_lm.data.splits import Splits, full_documents
from lit_small_lm.data.store import TOKENIZER, TokenStore, prepare
from lit_small_lm.data.tokenizer import check_specials, digest, digest_of_record
from lit_small_lm.errors import RequestError, shown
from lit_small_lm.plugin import Component, Encoder, Source, Split, Tokenizer

HELD_OUT = 256
"""Documents of each component and held-out split that are scored where training streams."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """One component, and the streams of its splits."""

    component: Component
    open: Callable[[Split], Stream]
    summary: dict[str, dict[str, int]]
    """Documents, tokens and bytes of each split that is there."""
    fingerprint: str
    """Of its text."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All components, one tokenizer."""

    encoder: Encoder
    components: Sequence[Opened]
    _held: dict[Split, list[Stream]] = dataclasses.field(default_factory=dict, compare=False)

    def streams(self, split: Split) -> list[Stream]:
        """A split of each component."""
        if split not in self._held:
            opened = []
            for part in self.components:
                with naming(part.component.name):
                    opened.append(part.open(split))
            self._held[split] = opened
        return self._held[split]

    def documents(self, split: Split) -> dict[str, range]:
        """The numbers of each component's documents in a split."""
        found, at = {}, 0
        for part, stream in zip(self.components, self.streams(split), strict=True):
            found[part.component.name] = range(at, at + len(stream.starts))
            at += len(stream.starts)
        return found


def encoder_of(source: Source, tokenizer: Tokenizer, cache: Path, record: dict[str, object] | None) -> Encoder:
    """The encoder of a `record`, or one learned from the source."""
    encoder = learned(source, tokenizer, cache) if record is None else tokenizer.restore(record)
    check_specials(encoder)
    return encoder


def prepared(source: Source, tokenizer: Tokenizer, encoder: Encoder, cache: Path, tell: Tell | None) -> Corpus:
    """The corpus of token stores, one for each component, made now where they are not there yet."""
    components = []
    for component in source.components():
        with naming(component.name):
            components.append(_stored(component, prepare(component.source, encoder, cache, tell, tokenizer)))
    return Corpus(encoder, components)


def of_store(store: TokenStore, source: Source) -> Corpus:
    """The corpus of one token store alone; the source, a name for it, is not read."""
    return Corpus(store.encoder, [_stored(Component("", source, 1.0), store)])


def tokenizer_of(store: TokenStore) -> Tokenizer:
    """The tokenizer that a store was made with."""
    return Tokenizer.from_dict(json.loads((store.folder / TOKENIZER).read_text())["spec"])


def check_tokenizer(store: TokenStore, tokenizer: Tokenizer, record: dict[str, object] | None) -> None:
    """Raise RequestError if a store was made with another tokenizer than the one asked for.

    Args:
        store: what to train from.
        tokenizer: the one asked for.
        record: of the encoder that a checkpoint goes on with, which then is what is asked for.
    """
    if record is None and tokenizer == tokenizer_of(store):
        return
    record_asked = tokenizer.learn(iter(())).record() if record is None else record
    asked = digest_of_record(record_asked)
    if asked != digest(store.encoder):
        who = f"data.tokenizer {shown(str(tokenizer))}" if record is None else "the checkpoint's"
        raise RequestError(
            f"data.store: {shown(str(store.folder))} was made with tokenizer {digest(store.encoder)[:16]}; "
            f"{who} is {asked[:16]}"
        )


def _stored(component: Component, store: TokenStore) -> Opened:
    return Opened(component, store.split, store.summary()["splits"], store.summary()["fingerprint"])


def held_out(source: Source, encoder: Encoder, cache: Path) -> Corpus:
    """The first held-out documents of each component; nothing of the training split."""
    components = []
    for component in source.components():
        with naming(component.name):
            components.append(_first_held_out(component, encoder, cache))
    return Corpus(encoder, components)


def _first_held_out(component: Component, encoder: Encoder, cache: Path) -> Opened:
    texts = _held_out_texts(component.source, cache)
    streams, counts = {}, {}
    for split, found in texts.items():
        ids = [np.array(i, dtype=np.int64) for i in encoder.encode(found)] if found else []
        streams[split] = ArrayStream(ids, encoder.specials.end)
        size = sum(len(text.encode()) for text in found)
        counts[split] = {"documents": len(found), "tokens": streams[split].length - 1, "bytes": size}
    return Opened(component, streams.__getitem__, counts, component.source.fingerprint())


def _held_out_texts(source: Source, cache: Path) -> dict[str, list[str]]:
    """Read from the beginning until both held-out splits are full; kept, because that may be 40 times as much text."""
    file = cache / "held_out" / f"{key_of(f'{source.fingerprint()} {HELD_OUT}')}.json"
    if file.exists():
        return json.loads(file.read_text())
    splits, found = Splits.of(source), {"validation": [], "test": []}
    for document in full_documents(source):
        refuse_given(document.given)
        for split, text in splits.pieces(document):
            if split in found and len(found[split]) < HELD_OUT:
                found[split].append(text)
        if all(len(texts) == HELD_OUT for texts in found.values()):
            break
    replace_file(file, json.dumps(found))
    return found
