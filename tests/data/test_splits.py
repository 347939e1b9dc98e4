"""Splits: decided by the text alone, equal texts together, no split empty."""

import hashlib

import pytest

from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.splits import SLICE, SPLITS, Splits, digest_of, split_of
from lit_small_lm.data.tables import HFDataset
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Document


def test_whole_documents_are_held_out_by_the_digest_of_their_text(tiny_text):
    splits = Splits.of(TextFiles(path=str(tiny_text)))
    assert splits.rule == "whole"
    found = {split: 0 for split in SPLITS}
    for file in tiny_text.iterdir():
        [(split, text)] = splits.pieces(Document("any name", file.read_text()))
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 40
        assert split == {0: "validation", 1: "test"}.get(number, "train")
        found[split] += 1
    assert found == {"train": 36, "validation": 2, "test": 2}


def test_about_one_document_in_forty_is_held_out_for_each():
    counts = {split: 0 for split in SPLITS}
    for number in range(8000):
        counts[split_of(digest_of(f"document {number}"))] += 1
    assert 140 < counts["validation"] < 260
    assert 140 < counts["test"] < 260


def test_a_long_text_has_the_digest_of_its_whole():
    text = "ä" * (SLICE + 1) + "end"
    assert digest_of(text) == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def test_of_one_file_the_end_is_held_out(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "one.txt").write_text(text)
    splits = Splits.of(TextFiles(path=str(tmp_path / "one.txt")))
    assert splits.rule == "ends"
    pieces = splits.pieces(Document("one", text))
    assert [(split, len(piece)) for split, piece in pieces] == [("train", 900), ("validation", 50), ("test", 50)]
    assert "".join(piece for _, piece in pieces) == text


@pytest.mark.parametrize("text", ["", " \n", "\t"])
def test_an_empty_document_belongs_to_no_split(text):
    assert Splits("whole").pieces(Document("a", text)) == Splits("ends").pieces(Document("a", text)) == []


@pytest.mark.parametrize("content", ["", " \n "])
def test_a_source_without_text_is_refused(content, tmp_path):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(RequestError, match="holds no text"):
        Splits.of(TextFiles(path=str(tmp_path / "a.txt")))


def test_many_documents_are_held_out_whole_whatever_the_first_ones_are(tmp_path):
    rows = "\n".join('{"text": "the same"}' for _ in range(400))
    (tmp_path / "a.jsonl").write_text(rows)
    assert Splits.of(HFDataset(path=str(tmp_path / "a.jsonl"))).rule == "whole"
    (tmp_path / "a.jsonl").write_text(rows[: rows.rindex("\n")])
    assert Splits.of(HFDataset(path=str(tmp_path / "a.jsonl"))).rule == "ends"
