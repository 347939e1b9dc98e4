"""Text files: what is read, how it is named, and what is refused."""

import os

import pytest

from lit_small_lm.data import cache
from lit_small_lm.data.sources import LEFT_OUT, TextFiles, files_of
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.testing import check


def documents(source):
    return [document for part in range(len(source.parts())) for document in source.read(part)]


def test_every_file_is_a_part_and_a_document(tiny_text):
    source = TextFiles(path=str(tiny_text))
    found = documents(source)
    assert [document.name for document in found] == [part.name for part in source.parts()]
    assert [document.name for document in found] == [f"page_{number:03d}.txt" for number in range(40)]
    assert found[7].text == (tiny_text / "page_007.txt").read_text()
    assert source.parts()[7].size == (tiny_text / "page_007.txt").stat().st_size
    check(source)


def test_the_standard_library_is_the_default_without_tests_and_generated_data():
    found = [name for name, _ in files_of(None)]
    assert len(found) > 300
    assert "argparse.py" in found
    assert all(name.endswith(".py") and not LEFT_OUT & set(name.split("/")) for name in found)


def test_only_text_files_of_a_tree_are_read(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("words " * 30)
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / "c.jsonl").write_text('{"text": "a row"}')
    (tmp_path / ".hidden.txt").write_text("not this")
    assert [document.name for document in documents(TextFiles(path=str(tmp_path)))] == ["deep/a.md"]


def test_the_fingerprint_follows_the_content(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one " * 100)
    before = TextFiles(path=str(file)).fingerprint()
    assert TextFiles(path=str(file)).fingerprint() == before
    file.write_text("two " * 100)
    assert TextFiles(path=str(file)).fingerprint() != before


def test_a_file_that_has_not_changed_is_not_read_again_for_its_digest(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 100)
    before = TextFiles(path=str(tmp_path)).parts()
    read, real = [], cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda file: read.append(file.name) or real(file))
    assert TextFiles(path=str(tmp_path)).parts() == before
    assert read == []
    (tmp_path / "b.txt").write_text("c" * 100)
    os.utime(tmp_path / "b.txt", ns=(1, 1))
    assert TextFiles(path=str(tmp_path)).parts()[0] == before[0]
    assert TextFiles(path=str(tmp_path)).parts()[1] != before[1]
    assert read == ["b.txt"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), (b"good \xff bad", r"byte 5 \(0xff\) is not UTF-8")],
)
def test_what_cannot_be_read_is_named(content, says, tmp_path):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        documents(TextFiles(path=str(file)))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv.gz"])
def test_a_table_is_sent_to_the_source_that_reads_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"whatever")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(RequestError, match=f"--data.source HFDataset --data.source.path {path}"):
            TextFiles(path=str(path)).parts()


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    with pytest.raises(RequestError, match="holds no text file"):
        TextFiles(path=str(tmp_path)).parts()


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert [d.text for d in documents(TextFiles(path=str(tmp_path / "a.txt")))] == ["one\ntwo\n"]


@pytest.mark.parametrize("change", ["grown", "gone"])
def test_a_file_that_changes_after_the_start_is_named(change, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one " * 100)
    source = TextFiles(path=str(file))
    source.parts()
    if change == "grown":
        file.write_text("one " * 101)
    else:
        file.unlink()
    with pytest.raises(RunError, match="a.txt: (changed while|No such file)"):
        documents(source)
