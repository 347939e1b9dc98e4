"""The token store: every document between end tokens, the same however it was made, damage named."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from lit_small_lm.data import encoding, store
from lit_small_lm.data.shards import SplitTokens, TokenFile
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.splits import SPLITS, Splits
from lit_small_lm.data.store import TokenStore, prepare
from lit_small_lm.data.tables import HFDataset
from lit_small_lm.data.tokenizer import BPE, ByteEncoder, Bytes
from lit_small_lm.errors import RequestError, RunError

ENCODER = Bytes().learn(iter(()))


@pytest.fixture
def small(monkeypatch):
    """Shards of 20,000 tokens, batches of 5,000 characters."""
    monkeypatch.setattr(store, "SHARD_TOKENS", 20_000)
    monkeypatch.setattr(encoding, "BATCH", 5_000)
    monkeypatch.setattr(encoding, "LOOK_BACK", 100)


def texts_of(source, split):
    splits = Splits.of(source)
    return [
        text
        for part in range(len(source.parts()))
        for document in source.read(part)
        for found, text in splits.pieces(document)
        if found == split
    ]


def texts_in(found: SplitTokens):
    ends = [*found.starts[1:].tolist(), found.length - 1]
    return [ENCODER.decode(found.read(a, b).tolist()) for a, b in zip(found.starts.tolist(), ends, strict=True)]


def contents(folder):
    """Every file of a store; of the records all but the times."""
    found = {}
    for file in folder.iterdir():
        if file.suffix == ".json" and file.name != "tokenizer.json":
            record = json.loads(file.read_text())
            for shard in record.get("shards", [record]):
                for entry in shard["files"].values():
                    del entry["mtime_ns"]
            found[file.name] = record
        else:
            found[file.name] = file.read_bytes()
    return found


def test_a_store_holds_every_document_between_end_tokens(tiny_text, tmp_path, small):
    source = TextFiles(path=str(tiny_text))
    made = prepare(source, ENCODER, tmp_path)
    assert len(made.summary()["shards"]) > 3
    for split in SPLITS:
        found, texts = made.split(split), texts_of(source, split)
        assert texts_in(found) == texts
        assert found.documents == len(texts)
        assert found.length == sum(len(text.encode()) + 1 for text in texts) + 1
        assert {int(found.read(i, i + 1)[0]) for i in [*found.starts, found.length - 1]} == {ENCODER.specials.end}
        counts = made.summary()["splits"][split]
        assert counts["documents"] == len(texts)
        assert counts["tokens"] == found.length - 1
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)


def test_the_end_of_every_document_may_be_held_out(tmp_path):
    (tmp_path / "one.txt").write_text("0123456789" * 100)
    made = prepare(TextFiles(path=str(tmp_path / "one.txt")), ENCODER, tmp_path / "cache")
    assert made.summary()["rule"] == "ends"
    assert [len(texts_in(made.split(split))[0]) for split in SPLITS] == [900, 50, 50]


def test_the_same_content_is_tokenised_once_and_another_tokenizer_again(tiny_text, tmp_path):
    source = TextFiles(path=str(tiny_text))
    first = prepare(source, ENCODER, tmp_path)
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    told = []
    again = prepare(TextFiles(path=str(tiny_text)), ENCODER, tmp_path, told.append)
    assert again.folder == first.folder
    assert told == []
    assert (again.folder / "manifest.json").stat().st_mtime_ns == written
    assert prepare(source, BPE(vocab_size=300).learn(iter(["ab"] * 9)), tmp_path).folder != first.folder


class Stops:
    """Stops a preparation, as Ctrl-C would, after so many batches."""

    def __init__(self, after):
        self.left = after

    def __call__(self, progress):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_preparation_goes_on_and_ends_the_same(tiny_text, tmp_path, small):
    source = TextFiles(path=str(tiny_text))
    whole = prepare(source, ENCODER, tmp_path / "whole", tokenizer=Bytes())
    shares = []
    for _ in range(20):
        progress = []
        try:
            parts = prepare(
                source, ENCODER, tmp_path / "parts", lambda p, stop=Stops(9), seen=progress: seen.append(p) or stop(p),
                tokenizer=Bytes(),
            )  # fmt: skip
        except KeyboardInterrupt:
            with pytest.raises(RequestError, match="interrupted"):
                TokenStore.open(next((tmp_path / "parts" / "tokens").iterdir()))
        shares.append((progress[0].share, progress[-1].share))
        if progress[-1].share == 1:
            break
    assert len(shares) > 2
    assert shares == sorted(shares) and shares[1][0] > shares[0][0]
    parts = prepare(source, ENCODER, tmp_path / "parts", tokenizer=Bytes())
    assert contents(parts.folder) == contents(whole.folder)


def test_several_processes_make_the_same_store(tiny_text, tmp_path, small, monkeypatch):
    source, bpe = TextFiles(path=str(tiny_text)), BPE(vocab_size=300).learn(iter(["the cat sat"] * 9))
    alone = prepare(source, bpe, tmp_path / "alone")
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setattr(store.worker, "cores", lambda: 2)
    assert contents(prepare(source, bpe, tmp_path / "together").folder) == contents(alone.folder)


def test_two_at_the_same_time_do_not_spoil_each_other(tiny_text, tmp_path, small):
    found, told = [], []

    def one():
        source = TextFiles(path=str(tiny_text))
        found.append(prepare(source, ENCODER, tmp_path, lambda _: told.append(threading.get_ident())))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({made.folder for made in found}) == 1 and len(found) == 3
    assert len(set(told)) == 1  # one worked, the others waited
    assert texts_in(found[0].split("test")) == texts_of(TextFiles(path=str(tiny_text)), "test")


def test_progress_says_how_far_and_how_long(tiny_text, tmp_path, small):
    told = []
    prepare(TextFiles(path=str(tiny_text)), ENCODER, tmp_path, told.append)
    assert len(told) > 10
    assert [progress.share for progress in told] == sorted(progress.share for progress in told)
    assert told[-1].share == 1 and told[-1].left == 0
    assert told[-1].documents == 40
    assert told[-1].bytes == sum(file.stat().st_size for file in tiny_text.iterdir())


def test_progress_follows_rows_within_a_part(tmp_path, small):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "row {i} {"word " * 50}"}}\n' for i in range(500)))
    told = []
    prepare(HFDataset(path=str(tmp_path / "a.jsonl")), ENCODER, tmp_path / "cache", told.append)
    assert len({progress.share for progress in told}) > 5


def test_empty_documents_and_duplicates_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 3000, 200)) for _ in range(300)]
    near = [text.replace(text.split()[50], "other") for text in texts[:5]]
    rows = [*texts, "", None, "  ", *near, *texts[10:17]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    summary = prepare(HFDataset(path=str(tmp_path / "a.jsonl")), ENCODER, tmp_path / "cache").summary()
    counted = summary["splits"]
    assert summary["rule"] == "whole"
    assert summary["empty"] == 3
    assert sum(counts["exact"] for counts in counted.values()) == 7
    assert sum(counts["near"] + counts["in_train"] for counts in counted.values()) == 12
    assert sum(counts["documents"] for counts in counted.values()) == 312


def test_a_long_document_is_cut_at_white_space_and_joined(tmp_path, small):
    text = " ".join(f"word{number}" for number in range(4000)) + " the end of it"
    (tmp_path / "a.txt").write_text(text)
    bpe = BPE(vocab_size=400).learn(iter([text]))
    made = prepare(TextFiles(path=str(tmp_path / "a.txt")), bpe, tmp_path / "cache").split("train")
    [train] = texts_of(TextFiles(path=str(tmp_path / "a.txt")), "train")
    assert len(train) > 6 * encoding.BATCH
    assert made.read(0, made.length).tolist() == [0, *bpe.encode([train])[0], 0]


def test_a_text_without_white_space_is_cut_all_the_same(tmp_path, small):
    (tmp_path / "a.txt").write_text("x" * 23_000)
    made = prepare(TextFiles(path=str(tmp_path / "a.txt")), ENCODER, tmp_path / "cache").split("train")
    assert texts_in(made) == ["x" * (23_000 - 2 * 1150)]


# ---------------------------------------------------------------------------------------------------- opening, damage
def test_a_store_is_opened_by_its_folder_alone(tiny_text, tmp_path):
    bpe = BPE(vocab_size=300)
    made = prepare(TextFiles(path=str(tiny_text)), bpe.learn(iter(["the cat"] * 9)), tmp_path, tokenizer=bpe)
    again = TokenStore.open(made.folder)
    assert again.encoder.record() == made.encoder.record()
    assert again.summary() == made.summary()
    assert again.verify() > 100_000


@pytest.fixture
def made(tiny_text, tmp_path, small):
    return prepare(TextFiles(path=str(tiny_text)), ENCODER, tmp_path, tokenizer=Bytes())


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 3}'])
def test_a_damaged_description_of_a_store_is_named(name, content, made):
    (made.folder / name).write_text(content)
    with pytest.raises(RunError, match=f"token store: .*{name} (cannot be read|is damaged)"):
        TokenStore.open(made.folder)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path):
    for split in SPLITS:
        (tmp_path / f"00000.{split}.tokens").symlink_to("/dev/full")
    with pytest.raises(RunError, match="00000.train.tokens: cannot be written; is the disk full"):
        prepare_into(tmp_path)


def prepare_into(folder):
    from lit_small_lm.data.encoding import Encoded
    from lit_small_lm.data.shards import ShardWriter

    none = np.zeros((0, 17), np.uint64)
    ShardWriter(folder, 0, "uint16").add([Encoded("train", np.ones(1 << 20, np.uint16), none[:, 0], none, 0)], 0)


def flip(file, at=10):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def edit(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("what", ["tokens", "documents.npy"])
def test_a_changed_file_is_named_with_both_digests(what, made):
    file = made.folder / f"00001.train.{what}"
    flip(file, -1)
    with pytest.raises(RunError, match=rf"shard 1: .*{file.name} is damaged: SHA-256 \w+, expected \w+"):
        TokenStore.open(made.folder).split("train")
    made.split("test")  # the others are whole


def test_a_change_that_leaves_size_and_time_is_found_by_verifying(made):
    file = made.folder / "00000.train.tokens"
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    TokenStore.open(made.folder).split("train")
    with pytest.raises(RunError, match="shard 0: .*00000.train.tokens is damaged"):
        made.verify()


def test_a_copied_store_is_good(made):
    for file in made.folder.iterdir():
        os.utime(file)
    assert TokenStore.open(made.folder).split("train").length > 0


def test_a_shard_that_is_too_short_or_gone_is_named(made):
    file = made.folder / "00000.train.tokens"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="shard 0: .* bytes, expected"):
        made.split("train")
    file.unlink()
    with pytest.raises(RunError, match="shard 0: .*No such file"):
        made.split("train")


def test_a_file_that_is_cut_short_while_it_is_read_is_named(made):
    found = made.split("train")
    found.read(0, 100)
    (made.folder / "00000.train.tokens").write_bytes(b"1234")
    with pytest.raises(RunError, match="00000.train.tokens has 4 bytes, expected"):
        found.read(500, 600)


def test_a_file_that_changes_while_it_is_read_is_held_against_its_digest(made):
    """What is the same, or lies beside, or is away but open, is read on."""
    file, found = made.folder / "00000.train.tokens", made.split("train")
    whole, expected = file.read_bytes(), found.read(0, 600).tolist()
    os.utime(file)
    assert found.read(0, 600).tolist() == expected
    flip(file, 1000)
    for _ in range(2):
        with pytest.raises(RunError, match=f"{file.name} is damaged: SHA-256"):
            found.read(0, 100)
    file.write_bytes(whole)
    assert found.read(0, 600).tolist() == expected
    file.unlink()
    assert found.read(0, 600).tolist() == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 1}, "format 1; this version reads 3"),
        ({"dtype": "int32"}, "ids are int32, which may be negative"),
        ({"tokenizer": "0" * 64}, "made with tokenizer 0000000000000000, this one is 7dd98af619ce4a56"),
    ],
    ids=str,
)
def test_a_store_that_does_not_go_with_this_program_is_refused(changes, says, made):
    edit(made.folder, **changes)
    with pytest.raises(RequestError, match=says):
        TokenStore.open(made.folder)


def test_ids_outside_the_vocabulary_are_refused_with_their_place(made):
    file = made.folder / "00001.train.tokens"
    tokens = np.fromfile(file, "uint16")
    tokens[77] = 1234
    tokens.tofile(file)
    shards = made.summary()["shards"]
    shards[1]["largest"] = 1234
    edit(made.folder, shards=shards)
    with pytest.raises(RequestError, match="id 1234 at token 77 of 00001.train.tokens; vocab_size is 259"):
        TokenStore.open(made.folder)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(RequestError, match="data.store: .*no token store"):
        TokenStore.open(tmp_path)


class WrongIds(ByteEncoder):
    """Gives ids that are none."""

    def __init__(self, wrong):
        self.wrong = wrong

    def encode(self, texts):
        return [[self.wrong] for _ in texts]


@pytest.mark.parametrize("wrong", [-1, 259, 1 << 20])
def test_a_tokenizer_that_gives_wrong_ids_is_named(wrong, tiny_text, tmp_path):
    with pytest.raises(RequestError, match=f"it gave the id {wrong}; allowed with vocab_size 259: 0 to 258"):
        prepare(TextFiles(path=str(tiny_text)), WrongIds(wrong), tmp_path)


# ------------------------------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_any_range_is_read_across_pieces(kind, tmp_path):
    arrays = [np.arange(a, b, dtype=np.uint16) for a, b in ((0, 7), (7, 7), (7, 8), (8, 30))]
    pieces = arrays
    if kind == "files":
        for i, array in enumerate(arrays):
            array.tofile(tmp_path / str(i))
        pieces = [TokenFile(tmp_path / str(i), len(array), "uint16") for i, array in enumerate(arrays)]
    stream = SplitTokens(pieces, np.array([0, 5]))
    assert (stream.length, stream.documents) == (30, 2)
    for start in range(30):
        for stop in range(start, 31):
            assert stream.read(start, stop).tolist() == list(range(start, stop))
    stream.read(0, 3)[:] = 99  # a copy
    assert stream.read(0, 3).tolist() == [0, 1, 2]


def test_a_stream_can_be_sent_to_another_process(made):
    import pickle

    found = made.split("train")
    expected = found.read(0, 50).tolist()
    assert pickle.loads(pickle.dumps(found)).read(0, 50).tolist() == expected  # noqa: S301


MEASURE = """
import resource, sys
from pathlib import Path
from lit_small_lm.data import store
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tokenizer import Bytes
store.SMALL = 10**9  # in this process alone
encoder = Bytes().learn(iter(()))
store.prepare(TextFiles(path=sys.argv[1] + "/small.txt"), encoder, Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.prepare(TextFiles(path=sys.argv[1] + "/large.txt"), encoder, Path(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1024 if sys.platform == "linux" else 1))
"""


@pytest.mark.slow
def test_one_very_long_line_takes_less_than_four_times_its_size(tmp_path):
    (tmp_path / "small.txt").write_text("some words " * 200_000)  # longer than a batch, so that its memory is counted
    (tmp_path / "large.txt").write_text("some words " * 8_000_000)
    argv = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 4 * (tmp_path / "large.txt").stat().st_size
