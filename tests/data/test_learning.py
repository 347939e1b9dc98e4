"""What a tokenizer is learned from: training text of every component, by weight, within a limit."""

from lit_small_lm.data import encoding
from lit_small_lm.data.learning import chosen_parts, learned, training_texts
from lit_small_lm.data.mixture import Mixture, Weighted
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.splits import Splits
from lit_small_lm.data.tokenizer import BPE, Bytes
from lit_small_lm.plugin import SourcePart


def test_a_small_source_is_learned_from_whole_held_out_text_excepted(tiny_text):
    source = TextFiles(path=str(tiny_text))
    splits = Splits.of(source)
    documents = [document for part in range(40) for document in source.read(part)]
    train = [text for document in documents for split, text in splits.pieces(document) if split == "train"]
    assert list(training_texts(source, 10**9)) == train
    assert len(train) == 36


def test_the_encoder_is_that_of_the_training_text_and_kept(tiny_text, tmp_path, monkeypatch):
    source, spec = TextFiles(path=str(tiny_text)), BPE(vocab_size=400)
    found = learned(source, spec, tmp_path)
    assert found.record() == spec.learn(training_texts(source, 10**9)).record()
    monkeypatch.setattr(BPE, "learn", None)  # not called again
    assert learned(source, spec, tmp_path).record() == found.record()


def test_of_more_than_the_limit_a_spread_beginning_is_taken(tiny_text):
    source = TextFiles(path=str(tiny_text))
    texts = list(training_texts(source, 40_000))
    assert 35_000 < sum(map(len, texts)) <= 40_000
    assert texts == list(training_texts(source, 40_000))
    assert len(texts) > 10
    assert any(texts[-1] in file.read_text() for file in sorted(tiny_text.iterdir())[35:])


def test_parts_are_chosen_evenly():
    parts = [SourcePart(str(i), 1000, "") for i in range(100)]
    assert chosen_parts(parts, 10**6) == list(range(100))
    assert chosen_parts(parts, 50_000) == list(range(0, 100, 2))
    assert len(chosen_parts(parts, 10)) == 16
    assert len(chosen_parts([SourcePart("a", 0, "")] * 100, 10**6)) == 16  # sizes unknown


def test_components_give_by_their_weight(tiny_text, tmp_path):
    (tmp_path / "notes.txt").write_text("note " * 20_000)
    notes, pages = TextFiles(path=str(tmp_path / "notes.txt")), TextFiles(path=str(tiny_text))
    mixture = Mixture(sources={"notes": Weighted(source=notes, weight=3.0), "pages": Weighted(source=pages)})
    texts = list(training_texts(mixture, 80_000))
    of_notes = sum(len(text) for text in texts if text.startswith("note note"))
    assert of_notes == 60_000
    assert sum(map(len, texts)) == 80_000


def test_long_documents_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 1000)
    (tmp_path / "a.txt").write_text("word " * 2000)
    texts = list(training_texts(TextFiles(path=str(tmp_path / "a.txt")), 10**9))
    assert "".join(texts) == "word " * 1800
    assert max(map(len, texts)) <= 1000


def test_what_learns_nothing_is_not_kept(tiny_text, tmp_path):
    learned(TextFiles(path=str(tiny_text)), Bytes(), tmp_path)
    assert not (tmp_path / "tokenizers").exists()
