"""Text files: what is read, how it is split, and what is refused."""

import hashlib

import pytest

from lit_small_lm.data.sources import LEFT_OUT, TextFiles, files_of
from lit_small_lm.errors import RequestError

SPLITS = ("train", "validation", "test")


def names(source, split):
    return [document.name for document in source.open(split)]


def test_whole_files_are_held_out_by_the_digest_of_their_path(tiny_text):
    source = TextFiles(path=str(tiny_text))
    for split in SPLITS:
        for name in names(source, split):
            held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20 == 0
            assert held_out == (split != "train"), name
    assert sorted(name for split in SPLITS for name in names(source, split)) == sorted(
        n for n, _ in files_of(str(tiny_text))
    )


def test_the_standard_library_is_the_default_without_tests_and_generated_data():
    found = [name for name, _ in files_of(None)]
    assert len(found) > 300
    assert "argparse.py" in found
    assert all(name.endswith(".py") and not LEFT_OUT & set(name.split("/")) for name in found)


def test_of_one_file_the_end_is_held_out(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "one.txt").write_text(text)
    source = TextFiles(path=str(tmp_path / "one.txt"))
    pieces = ["".join(document.text for document in source.open(split)) for split in SPLITS]
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces] == [900, 50, 50]


def test_only_text_files_of_a_tree_are_read_and_empty_ones_are_counted(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("words " * 30)
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("not this")
    (tmp_path / "empty.txt").write_text(" \n")
    source = TextFiles(path=str(tmp_path))
    assert set(names(source, "train")) == {"deep/a.md"}
    assert source.skipped == 1


def test_the_fingerprint_follows_the_content(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one " * 100)
    before = TextFiles(path=str(file)).fingerprint()
    assert TextFiles(path=str(file)).fingerprint() == before
    file.write_text("two " * 100)
    assert TextFiles(path=str(file)).fingerprint() != before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"good \xff bad", r"byte 5 \(0xff\) is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(content, says, tmp_path):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        TextFiles(path=str(file)).open("train")


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode() * 1)
    source = TextFiles(path=str(tmp_path / "a.txt"))
    assert "".join(d.text for split in SPLITS for d in source.open(split)) == "one\ntwo\n"
