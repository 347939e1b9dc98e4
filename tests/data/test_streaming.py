"""Streaming: the training split, window by window, and exactly on from any batch."""

from collections import Counter
from dataclasses import dataclass

import pytest

from lit_small_lm.data import encoding, streaming
from lit_small_lm.data.loader import BatchLoader
from lit_small_lm.data.packing import Concatenated
from lit_small_lm.data.plan import Pace, Shares, Warmup
from lit_small_lm.data.splits import Splits
from lit_small_lm.data.streaming import Cursor, Reader, StreamedFeed, ahead
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.plugin import Component, Document, Source, SourcePart

ENCODER = Bytes().learn(iter([]))
NOTES = 1 << 40
"""The number of the second component's first document."""


@dataclass(frozen=True, kw_only=True)
class Sentences(Source):
    """Small documents in several parts."""

    word: str = "word"
    count: int = 90
    broken: int = -1

    def parts(self):
        return [SourcePart(f"part {n}", 0, f"{self.word} {n}") for n in range(3)]

    def read(self, part):
        for number in range(part * self.count // 3, (part + 1) * self.count // 3):
            if number == self.broken:
                raise RunError(f"part {part} is damaged")
            yield Document(str(number), f"{self.word} {number} " * (1 + number % 5))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW", 300)
    monkeypatch.setattr(encoding, "BATCH", 120)


def reader(word="word", weight=1.0, packing="best_fit", seed=0, first=0, **source):
    return Reader(Component(word, Sentences(word=word, **source), weight), ENCODER, 16, packing, seed, first)


def training_texts(word="word", **source):
    source = Sentences(word=word, **source)
    rule = Splits.of(source)
    return [text for part in range(3) for d in source.read(part) for split, text in rule.pieces(d) if split == "train"]


def epoch_of(found, epoch=0):
    windows = []
    for window in found.windows(Cursor()):
        if window.cursor.epoch > epoch:
            return windows
        windows.append(window)


def tokens_of(windows):
    return [window.packed.stream.tokens.tolist() for window in windows]


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_an_epoch_holds_every_training_document_once(packing):
    windows = epoch_of(reader(packing=packing))
    assert len(windows) > 5
    texts = []
    for stream in (window.packed.stream for window in windows):
        edges = [*stream.starts.tolist(), stream.length - 1]
        texts += [ENCODER.decode(stream.read(a, b).tolist()) for a, b in zip(edges, edges[1:], strict=False)]
    assert texts == training_texts()
    assert sum(window.packed.scored for window in windows) == sum(len(text) + 1 for text in texts)


def test_a_window_is_built_again_from_its_cursor():
    first = epoch_of(reader())
    for number in (1, 4):
        again = next(reader().windows(first[number].cursor))
        assert again.cursor == first[number].cursor
        assert tokens_of([again]) == tokens_of([first[number]])
        assert again.order.tolist() == first[number].order.tolist()


def test_rows_are_shuffled_by_seed_and_epoch():
    stream = reader().windows(Cursor())
    first = next(stream)
    second = next(window for window in stream if window.cursor.epoch == 1)
    assert tokens_of([first]) == tokens_of([second])
    assert first.order.tolist() != second.order.tolist()
    assert first.order.tolist() != next(reader(seed=1).windows(Cursor())).order.tolist()
    assert sorted(first.order) == list(range(len(first.packed)))


def test_a_long_document_is_encoded_in_runs_and_joined():
    text = "one two three " * 50
    source = Sentences(word=text.strip(), count=3)
    found = Reader(Component("", source, 1.0), ENCODER, 16, "concatenate", 0)
    assert ENCODER.decode([t for ids in tokens_of(epoch_of(found)) for t in ids]) == "".join(
        training_texts(word=text.strip(), count=3)
    )


def feed(world_size=1, accumulate=1, rank=0, workers=0, weights=(0.7, 0.3), packing="best_fit", broken=-1):
    readers = [reader("pages", weights[0], packing), reader("notes", weights[1], packing, first=NOTES, broken=broken)]
    shares = Shares(Pace(16, 16, Warmup(batch_size=3, seq_len=6)), accumulate, rank, world_size, 30)
    return StreamedFeed(readers, shares, workers)


def steps_of(loaders, accumulate=1, start=0):
    """Every row of every step by its slot, as all processes together take them."""
    found = {}
    for loader in loaders:
        for number, batch in enumerate(loader, start * accumulate):
            rows = zip(batch.slots.tolist(), batch.tokens.tolist(), batch.doc_ids.tolist(), strict=True)
            found |= {(number // accumulate, slot): (tokens, docs) for slot, tokens, docs in rows}
    return found


def test_processes_accumulation_and_workers_do_not_change_the_order():
    alone = steps_of([BatchLoader(feed())])
    assert len(alone) > 400
    assert steps_of([BatchLoader(feed(accumulate=2))], 2) == alone
    assert steps_of([BatchLoader(feed(2, rank=rank)) for rank in range(2)]) == alone
    assert steps_of([BatchLoader(feed(workers=1))]) == alone


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 2)])
def test_a_loader_goes_on_from_its_state(before, after):
    whole = steps_of([BatchLoader(feed())])
    first = BatchLoader(feed(accumulate=before))
    iterator = iter(first)
    for _ in range(17 * before):
        next(iterator)
    state = first.state_dict()
    assert state["steps"] == 17
    assert state["feed"]["cursors"][0][0] > 0  # in a later epoch
    again = BatchLoader(feed(accumulate=after))
    again.load_state_dict(state)
    late = steps_of([again], after, start=17)
    assert late == {key: row for key, row in whole.items() if key[0] >= 17}


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_the_shares_of_tokens_are_those_asked_for(packing):
    counts = Counter()
    for batch in BatchLoader(feed(packing=packing)):
        documents = batch.doc_ids[:, :-1][batch.loss_mask]
        counts["notes"] += int((documents >= NOTES).sum())
        counts["pages"] += int((documents < NOTES).sum())
    assert counts["pages"] / counts.total() == pytest.approx(0.7, abs=0.03)


def test_other_weights_go_on_with_the_text_at_hand():
    first = BatchLoader(feed())
    iterator = iter(first)
    for _ in range(17):
        next(iterator)
    again = BatchLoader(feed(weights=(0.5, 0.5)))
    again.load_state_dict(first.state_dict())
    cursors = first.state_dict()["feed"]["cursors"]
    later = next(again.feed.batches(17, first.state_dict()["feed"]))[1]["cursors"]
    assert [c[:4] for c in later] >= [c[:4] for c in cursors]
    assert len(list(again)) == 13


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_raised_where_training_is(workers):
    with pytest.raises(RunError, match="data.source.sources.notes: part 1 is damaged"):
        list(BatchLoader(feed(workers=workers, broken=50)))


def test_a_source_without_training_documents_is_refused():
    with pytest.raises(RequestError, match="sources.word.source: it holds no text|no text"):
        next(reader(count=0).windows(Cursor()))


def test_reading_ahead_stops_when_nobody_asks_any_more():
    seen = []

    def items():
        for number in range(1000):
            seen.append(number)
            yield number

    found = ahead(items(), 3)
    assert [next(found) for _ in range(5)] == list(range(5))
    found.close()
    assert len(seen) <= 10


def test_windows_are_padded_at_their_end_only():
    window = epoch_of(reader(packing="concatenate"))[0]
    assert isinstance(window.packed, Concatenated)
    assert window.packed.scored == window.packed.stream.length - 1
