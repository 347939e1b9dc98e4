"""Packing: every token is the target of exactly one position, and no document that fits is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_small_lm.data import packing
from lit_small_lm.data.loader import Rows
from lit_small_lm.data.packing import ArrayStream, BestFit, Concatenated, best_fit, fill, pack
from lit_small_lm.data.plan import Wanted
from lit_small_lm.plugin import Specials

END, PAD = 0, 1
SPECIALS = Specials(vocab_size=40, end=END, pad=PAD, mask=2)
STREAM = ArrayStream([np.array(ids) for ids in ([11, 12, 13, 14], [], [21, 22, 23, 24, 25, 26, 27], [31, 32])], END)
TOKENS = [END, 11, 12, 13, 14, END, END, 21, 22, 23, 24, 25, 26, 27, END, 31, 32, END]


def stream_of(lengths):
    """Documents whose ids are all different."""
    at, documents = 100, []
    for length in lengths:
        documents.append(np.arange(at, at + length))
        at += length
    return ArrayStream(documents, END)


def batch_of(packed):
    rows = Rows([packed], SPECIALS)
    return rows.__getitems__([Wanted(i, i) for i in range(len(rows))])


def questions(batch):
    """(document, input, target) of every position that counts, over all rows."""
    mask = torch.ones_like(batch.tokens[:, 1:], dtype=torch.bool) if batch.loss_mask is None else batch.loss_mask
    parts = (batch.doc_ids[:, :-1], batch.tokens[:, :-1], batch.tokens[:, 1:])
    return sorted(zip(*(part[mask].tolist() for part in parts), strict=True))


def wanted_questions(stream):
    docs = np.searchsorted(stream.starts, np.arange(stream.length - 1), side="right") - 1
    tokens = stream.tokens.tolist()
    return sorted(zip(docs.tolist(), tokens, tokens[1:], strict=False))


def test_the_stream_is_documents_between_end_tokens():
    assert STREAM.tokens.tolist() == TOKENS
    assert STREAM.starts.tolist() == [0, 5, 6, 14]


def test_evaluation_rows_hold_every_target_once():
    batch = batch_of(Concatenated(STREAM, 5, rest="pad"))
    assert batch.tokens[:, 1:][batch.loss_mask].tolist() == TOKENS[1:]
    docs = batch.doc_ids[:, :-1][batch.loss_mask]
    assert docs.tolist() == [0] * 5 + [1] + [2] * 8 + [3] * 3
    assert (batch.tokens[:, 1:][~batch.loss_mask] == PAD).all()


def test_training_rows_are_whole_and_need_no_mask():
    batch = batch_of(Concatenated(STREAM, 5))
    assert batch.loss_mask is None
    assert batch.tokens.tolist() == [TOKENS[i : i + 6] for i in (0, 5, 10)]
    assert batch.doc_ids.tolist() == [[0, 0, 0, 0, 0, 1], [1, 2, 2, 2, 2, 2], [2, 2, 2, 2, 3, 3]]


def test_a_padding_row_counts_nothing():
    batch = Rows([Concatenated(STREAM, 5, rest="pad")], SPECIALS).__getitems__([Wanted(-1, 0)])
    assert not batch.loss_mask.any()
    assert (batch.doc_ids == -1).all()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_every_token_is_the_target_of_one_position(lengths, seq_len):
    stream = stream_of(lengths)
    for rows in (Concatenated(stream, seq_len, rest="pad"), BestFit(stream, seq_len)):
        assert questions(batch_of(rows)) == wanted_questions(stream)
        assert rows.scored == stream.length - 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_best_fit_cuts_no_document_that_fits(lengths, seq_len):
    segments = best_fit(np.append(stream_of(lengths).starts, sum(lengths) + len(lengths)), seq_len)
    pieces = np.bincount(segments.documents, minlength=len(lengths))
    assert pieces.tolist() == [-(-(length + 1) // seq_len) for length in lengths]
    assert segments.rows[-1] == len(segments.starts)
    for first, last in zip(segments.rows, segments.rows[1:], strict=False):
        sizes = (segments.stops - segments.starts)[first:last]
        inside = segments.starts[first:last] > stream_of(lengths).starts[segments.documents[first:last]]
        assert 0 < sizes.sum() + max(0, int(inside.sum()) - 1) <= seq_len


def test_a_piece_from_inside_a_document_stands_apart_from_the_one_before():
    stream = stream_of([7, 7])  # 8 positions each: a whole row of 6, and 2 left
    batch = batch_of(BestFit(stream, 6))
    assert batch.tokens[2].tolist() == [105, 106, END, 112, 113, END, PAD]
    assert batch.doc_ids[2].tolist() == [0, 0, -1, 1, 1, -1, -1]
    assert batch.loss_mask[2].tolist() == [True, True, False, True, True, False]


def plain_best_fit(sizes, capacity):
    """The rule, word by word: the largest first, into the fullest bin that takes it."""
    bins = []
    for size in sorted(sizes, reverse=True):
        fitting = [content for content in bins if sum(content) + size <= capacity]
        (max(fitting, key=sum) if fitting else bins.append([]) or bins[-1]).append(size)
    return sorted(map(sum, bins))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_fast_fit_is_the_plain_one(sizes):
    found = np.bincount(fill(np.array(sizes), 20), weights=sizes)
    assert sorted(found.astype(int).tolist()) == plain_best_fit(sizes, 20)


def test_little_is_padded_where_documents_are_short():
    rng = np.random.default_rng(0)
    packed = BestFit(stream_of(rng.integers(5, 300, 5000).tolist()), 512)
    assert packed.scored / (len(packed) * 512) > 0.99


def test_documents_are_packed_in_groups(monkeypatch):
    monkeypatch.setattr(packing, "GROUP", 3)
    stream = stream_of([4, 9, 2, 2, 30, 0, 7])
    assert questions(batch_of(BestFit(stream, 6))) == wanted_questions(stream)


@pytest.mark.parametrize("how", ["concatenate", "best_fit"])
@pytest.mark.parametrize("pieces", [2, 8])
def test_shorter_rows_ask_the_same_questions(how, pieces):
    stream = stream_of([3, 20, 8, 15, 1, 40])
    rows = Rows([pack(stream, 16, how, rest="pad")], SPECIALS)
    whole = rows.__getitems__([Wanted(i, i) for i in range(len(rows))])
    short = rows.__getitems__([Wanted(i, i, pieces) for i in range(len(rows))])
    assert short.tokens.shape == (len(rows) * pieces, 16 // pieces + 1)
    assert questions(short) == questions(whole) == wanted_questions(stream)
    assert short.slots.tolist() == list(range(len(rows) * pieces))
    assert short.sample_ids.tolist() == [row for row in range(len(rows)) for _ in range(pieces)]


def test_components_are_numbered_one_after_another():
    first, second = stream_of([3, 20]), stream_of([8, 15, 1])
    rows = Rows([Concatenated(first, 4), Concatenated(second, 4, first_document=2)], SPECIALS)
    batch = rows.__getitems__([Wanted(i, i) for i in range(len(rows))])
    assert len(rows) == 6 + 6
    assert batch.doc_ids[:6].max() == 1
    assert batch.doc_ids[6:].min() == 2


def test_batches_move_as_one():
    batch = batch_of(Concatenated(STREAM, 5)).to("cpu", non_blocking=True)
    assert batch.loss_mask is None
    assert isinstance(batch.tokens, torch.Tensor)
