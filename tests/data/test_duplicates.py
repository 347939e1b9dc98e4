"""Duplicates: sketches see the same text, a changed text and another text for what they are."""

import random

import numpy as np
import pytest

from lit_small_lm.data import duplicates
from lit_small_lm.data.duplicates import BINS, EMPTY, SKETCH, count, run_length, sketches

END, RUN = 0, 8


def sketched(texts, digests=None):
    """Sketches of token lists, laid out as the store does: each begun by the end token."""
    tokens = np.concatenate([[END, *text] for text in texts]).astype(np.uint16)
    stops = np.cumsum([len(text) + 1 for text in texts])
    starts = stops - [len(text) + 1 for text in texts]
    return sketches(tokens, starts, stops, np.array(digests or range(1000, 1000 + len(texts)), np.uint64), RUN)


def some_text(seed, length=400):
    rng = random.Random(seed)
    return [rng.randrange(5000) for _ in range(length)]


def with_changes(text, number, seed=0):
    changed, rng = list(text), random.Random(seed)
    for at in rng.sample(range(len(text)), number):
        changed[at] = 9999
    return changed


def minima_one_by_one(text):
    """The plain twin of the vectorised minima: a loop over runs and bins."""
    least = [EMPTY] * BINS
    for at in range(len(text) - RUN + 1):
        value = duplicates._hashes(np.array(text[at : at + RUN], np.uint16), RUN)[0]
        least[int(value >> duplicates.BIN_SHIFT)] = min(least[int(value >> duplicates.BIN_SHIFT)], value)
    filled = [i for i, value in enumerate(least) if value != EMPTY]
    found = []
    for i in range(BINS):
        distance = min((j - i) % BINS for j in filled)
        found.append((int(least[(i + distance) % BINS]) + distance * int(duplicates._ODD[0])) % 2**64)
    return found


def test_a_run_stands_for_about_as_much_text_in_any_vocabulary():
    assert run_length([0, 0, 0] + [1] * 256) == 32
    assert run_length([1] * 256 + [5] * 3000) == 8
    assert run_length([7] * 50_000) == 4


@pytest.mark.parametrize("run", [2, 4, 32])
def test_equal_runs_and_only_those_have_equal_hashes(run):
    tokens = np.array([*some_text(1, 70), *some_text(1, 70)], np.uint16)
    hashes = duplicates._hashes(tokens, run).tolist()
    assert len(hashes) == 140 - run + 1
    assert hashes[: 70 - run + 1] == hashes[70:]
    assert len(set(hashes)) == len({tuple(tokens[i : i + run]) for i in range(len(hashes))})


def test_minima_are_those_of_a_plain_loop():
    texts = [some_text(1, 300), some_text(2, 9), some_text(3, 40)]
    tokens = np.concatenate([[END, *text] for text in texts]).astype(np.uint16)[1:]
    stops = np.cumsum([len(text) + 1 for text in texts]) - 1
    starts = stops - [len(text) for text in texts]
    found = duplicates._minima(tokens, starts, stops, RUN)
    for row, text in zip(found, texts, strict=True):
        assert row.tolist() == minima_one_by_one(text)


def test_a_sketch_does_not_depend_on_what_stands_beside(monkeypatch):
    texts = [some_text(i, 5 + 13 * i) for i in range(9)]
    together = sketched(texts)
    for i, text in enumerate(texts):
        assert sketched([text], [1000 + i]).tolist() == together[i : i + 1].tolist()
    monkeypatch.setattr(duplicates, "AT_ONCE", 2)
    assert sketched(texts).tolist() == together.tolist()


def test_near_and_exact_duplicates_are_counted():
    texts = [some_text(i) for i in range(50)]
    again = [with_changes(texts[i], 4) for i in range(10)]
    found = count({"train": [sketched(texts), sketched(again, range(2000, 2010)), sketched(texts[:3])]})["train"]
    assert found.exact == 3
    assert found.near == 13


def test_other_texts_are_no_duplicates():
    half = [text[:200] + some_text(seed + 500, 200) for seed, text in enumerate(map(some_text, range(300)))]
    found = count({"train": [sketched([some_text(i) for i in range(300)]), sketched(half, range(5000, 5300))]})["train"]
    assert found.exact == 0
    assert found.near < 20  # half of their runs differ: an overlap of a third


def test_short_documents_are_compared_by_their_digest():
    found = count({"train": [sketched([[1, 2], [1, 2], [3]], [7, 7, 8]), sketched([[]], [9])]})["train"]
    assert found == (1, 1, 0)


def test_held_out_documents_that_are_trained_on_in_another_form_are_counted():
    texts = [some_text(i) for i in range(20)]
    held_out = [with_changes(texts[3], 3), some_text(99), with_changes(texts[7], 3)]
    found = count({"train": [sketched(texts)], "validation": [sketched(held_out, [1, 2, 3])]})
    assert found["validation"] == (0, 0, 2)
    assert found["train"].in_train == 0


@pytest.mark.parametrize("split", ["train", "validation"])
def test_nothing_has_no_duplicates(split):
    nothing = np.empty((0, SKETCH), np.uint64)
    assert count({"train": [nothing], "validation": [nothing]})[split] == (0, 0, 0)
