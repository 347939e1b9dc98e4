"""Tables: the same rows from every format, and every fault named with file and row."""

import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_small_lm.data.tables import HFDataset
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.testing import check

TEXTS = ["one", 'two, "quoted"\nand more', "", None, "  ", "fünf 🙂", "5"]


def texts(source):
    return [document.text for part in range(len(source.parts())) for document in source.read(part)]


def as_parquet(folder):
    table = pa.table({"id": list(range(len(TEXTS))), "text": pa.array(TEXTS)})
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def as_large_strings(folder):
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), folder / "b.parquet")
    return folder / "b.parquet"


def as_dictionary(folder):
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), folder / "c.parquet")
    return folder / "c.parquet"


def as_json_lines(folder):
    rows = [{"id": i, **({} if text is None else {"text": text})} for i, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def as_packed_json_lines(folder):
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(as_json_lines(folder).read_bytes()))
    return folder / "b.jsonl.gz"


def as_json_list(folder):
    (folder / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    return folder / "a.json"


def as_csv(folder):
    quoted = ['"' + (text or "").replace('"', '""') + '"' for text in TEXTS]
    (folder / "a.csv").write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(quoted)))
    return folder / "a.csv"


def as_saved_to_disk(folder):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_folder(folder):
    (folder / "many").mkdir()
    for i, text in enumerate(TEXTS):
        pq.write_table(pa.table({"text": pa.array([text], pa.string())}), folder / "many" / f"train-{i:05d}.parquet")
    return folder / "many"


def as_pattern(folder):
    return as_folder(folder) / "train-*.parquet"


FORMS = [
    as_parquet, as_large_strings, as_dictionary, as_json_lines, as_packed_json_lines, as_json_list, as_csv,
    as_saved_to_disk, as_folder, as_pattern,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_format_gives_the_same_rows(form, tmp_path):
    source = HFDataset(path=str(form(tmp_path)))
    assert texts(source) == [text or "" for text in TEXTS]
    check(source)


def test_rows_are_named_and_counted(tmp_path):
    source = HFDataset(path=str(as_parquet(tmp_path)))
    assert [part.documents for part in source.parts()] == [len(TEXTS)]
    assert [document.name for document in source.read(0)][:2] == [
        f"{tmp_path}/a.parquet, row 1",
        f"{tmp_path}/a.parquet, row 2",
    ]


def test_a_folder_may_hold_several_splits(tmp_path):
    folder = as_folder(tmp_path)
    pq.write_table(pa.table({"text": ["held back"]}), folder / "test-00000.parquet")
    assert texts(HFDataset(path=str(folder), split="test")) == ["held back"]
    assert texts(HFDataset(path=str(folder))) == [text or "" for text in TEXTS]


def test_the_fingerprint_follows_content_and_column(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "title": "b"}\n')
    first = HFDataset(path=str(file)).fingerprint()
    assert HFDataset(path=str(file), text_column="title").fingerprint() != first
    (tmp_path / "b.jsonl").write_text(file.read_text())
    assert HFDataset(path=str(tmp_path / "b.jsonl")).fingerprint() == first
    file.write_text('{"text": "c", "title": "b"}\n')
    os.utime(file, ns=(1, 1))
    assert HFDataset(path=str(file)).fingerprint() != first


def test_nothing_is_copied(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    folder = as_folder(tmp_path)
    before = {file for file in tmp_path.rglob("*")}
    texts(HFDataset(path=str(folder)))
    assert {file for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"text_column": "txt"}, "'txt' is no column of .*a.parquet; columns: id, text; did you mean text"),
        ({"text_column": "id"}, "'id' of .* is int64; allowed: text"),
        ({"path": "{}/none"}, "does not exist"),
        ({"path": "none.parquet"}, "does not exist"),
        ({"path": "{}/*.arrow"}, "no file matches"),
        ({"path": ""}, "''; allowed"),
        ({"path": "{}", "split": "tarin"}, "'tarin' is no split of .*; known: train; did you mean train"),
        ({"path": "{}", "subset": "small"}, "'small' not found"),
    ],
    ids=str,
)
def test_a_wrong_request_names_what_there_is(wrong, says, tmp_path):
    file = as_parquet(tmp_path)
    path = wrong.pop("path", str(file)).format(tmp_path)
    with pytest.raises(RequestError, match=says) as error:
        texts(HFDataset(path=path, **wrong))
    assert len(str(error.value)) < 300


def test_text_files_are_sent_to_the_source_that_reads_them(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(RequestError, match="--data.source TextFiles"):
        texts(HFDataset(path=str(tmp_path)))


def test_a_script_is_refused_and_does_not_run(tmp_path):
    folder, witness = tmp_path / "mine", tmp_path / "witness"
    folder.mkdir()
    (folder / "mine.py").write_text(f"open({str(witness)!r}, 'w')")
    with pytest.raises(RequestError, match="nothing of it was run"):
        texts(HFDataset(path=str(folder)))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": 5}', "row 3: 5 is a whole number"),
        ('{"text": ["a"]}', r"row 3: \['a'\] is a list"),
        ('{"text": true}', "row 3: True is true or false"),
        ('{"text": ', "row 3: no JSON"),
        ("[1]", r"row 3: \[1\] is no JSON object"),
        ('{"text": "\\ud800"}', "row 3: character 0 is half of a pair"),
        ("[" * 100_000, "row 3: JSON in more levels"),
    ],
)
@pytest.mark.parametrize("before", [2, 250], ids=["early", "late"])
def test_a_value_that_is_no_text_is_named_with_file_and_row(line, says, before, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n' * before + line + "\n")
    with pytest.raises(RunError, match="a.jsonl.* " + says.replace("row 3", f"row {before + 1}")):
        texts(HFDataset(path=str(file)))


def test_a_broken_row_of_csv_is_named(tmp_path):
    (tmp_path / "a.csv").write_text('text\ngood\n"never closed\n')
    with pytest.raises(RunError, match=r"a.csv, row 2: no CSV \(unexpected end of data\)"):
        texts(HFDataset(path=str(tmp_path / "a.csv")))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n')
    with pytest.raises(RunError, match=r"a.jsonl.*row 2: byte 10 \(0xff\) is not UTF-8"):
        texts(HFDataset(path=str(tmp_path / "a.jsonl")))
    (tmp_path / "a.csv").write_bytes(b"text\ngood\n\xff\n")
    with pytest.raises(RunError, match="a.csv"):
        texts(HFDataset(path=str(tmp_path / "a.csv")))


@pytest.mark.parametrize("damage", ["cut short", "overwritten"])
def test_a_damaged_parquet_is_named(damage, tmp_path):
    pq.write_table(pa.table({"text": [f"some words {i * i}" for i in range(5000)]}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    if damage == "cut short":
        content = content[: len(content) // 2]
    else:
        content[100:400] = b"\0" * 300
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(RunError, match="a.parquet: cannot be read as parquet"):
        texts(HFDataset(path=str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(("suffix", "packer"), [(".gz", gzip), (".xz", lzma)])
def test_a_damaged_packed_file_is_named(suffix, packer, tmp_path):
    lines = "".join(json.dumps({"text": f"some words {i * i}"}) + "\n" for i in range(3000))
    content = bytearray(packer.compress(lines.encode()))
    for place in range(20, 28):
        content[place] ^= 255
    (tmp_path / f"a.jsonl{suffix}").write_bytes(content)
    with pytest.raises(RunError, match=f"a.jsonl{suffix}: cannot be read as json"):
        texts(HFDataset(path=str(tmp_path / f"a.jsonl{suffix}")))


def test_a_packed_file_nothing_here_can_read_is_refused(tmp_path, monkeypatch):
    import fsspec

    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setattr(fsspec.utils, "compressions", {})
    with pytest.raises(RequestError, match="zst needs a package"):
        texts(HFDataset(path=str(tmp_path / "a.jsonl.zst")))


def test_a_folder_without_tables_is_called_so(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("")
    with pytest.raises(RequestError, match="holds no file of rows"):
        HFDataset(path=str(tmp_path)).parts()


def test_a_local_name_is_no_address(tmp_path):
    (tmp_path / "a::b.jsonl").write_text('{"text": "good"}\n')
    assert texts(HFDataset(path=str(tmp_path / "a::b.jsonl"))) == ["good"]


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n' * 5000)
    source = HFDataset(path=str(file))
    source.parts()
    with pytest.raises(RunError, match="a.jsonl: changed while it was being read"):
        for number, _ in enumerate(source.read(0)):
            if number == 10:
                file.write_text('{"text": "good"}\n' * 6000)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'some/name' on the Hub\nand a second line")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(RunError, match="some/name is no file or folder here, and no hub could be asked: .*Hub$"):
        HFDataset(path="some/name").parts()


def test_files_of_a_hub_are_read_where_they_lie(tmp_path, monkeypatch):
    """A hub stood in for by fsspec's file system in memory: the builder's list of files is all that is taken over."""
    import datasets
    import fsspec

    for name in ("train-0.parquet", "train-1.parquet"):
        with fsspec.open(f"memory://hub@abc/{name}", "wb") as stream:
            pq.write_table(pa.table({"text": [name, None]}), stream)
    asked = {}

    class Builder:
        class config:
            data_files = {"train": ["memory://hub@abc/train-0.parquet", "memory://hub@abc/train-1.parquet"]}

    def builder(path, subset, revision, cache_dir):
        asked.update(path=path, subset=subset, revision=revision)
        return Builder

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    source = HFDataset(path="some/name", subset="small", revision="abc")
    assert texts(source) == ["train-0.parquet", "", "train-1.parquet", ""]
    assert asked == {"path": "some/name", "subset": "small", "revision": "abc"}
    assert source.parts()[0].size == 0
