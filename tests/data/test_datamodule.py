"""The data module: what its options ask for, and what it says of the data."""

import pytest
import torch

from lit_small_lm.data.corpus import Corpus
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.mixture import Mixture, Weighted
from lit_small_lm.data.plan import Wanted, Warmup
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.store import prepare
from lit_small_lm.data.tokenizer import BPE, Bytes
from lit_small_lm.errors import RequestError


@pytest.mark.parametrize(
    "wrong",
    [
        {"seq_len": 0},
        {"batch_size": 0},
        {"num_workers": -1},
        {"tokenizer": BPE(vocab_size=3)},
        {"micro_batch_size": 0},
        {"batch_tokens": 0},
        {"packing": "worst_fit"},
        {"reading": "aloud"},
        {"warmup": Warmup(batch_size=-1)},
        {"batch_tokens": 1000},
        {"store": "here", "reading": "streamed"},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError, match=f"data.{next(iter(wrong))}"):
        TokenData(**wrong)


def test_a_batch_may_be_given_in_tokens():
    assert TokenData().batch_size == 16
    assert TokenData(seq_len=128, batch_tokens=4096).batch_size == 32
    with pytest.raises(RequestError, match="data.batch_size: 16 beside data.batch_tokens 512"):
        TokenData(batch_size=16, batch_tokens=512)


def test_tokens_are_there_after_setup_only():
    with pytest.raises(RequestError, match="setup"):
        TokenData().corpus  # noqa: B018


@pytest.fixture
def mixture(tiny_text, tmp_path):
    (tmp_path / "notes.txt").write_text("".join(f"note {number}\n" for number in range(200)))
    notes = TextFiles(path=str(tmp_path / "notes.txt"))
    pages = TextFiles(path=str(tiny_text))
    return Mixture(sources={"pages": Weighted(source=pages), "notes": Weighted(source=notes, weight=3.0)})


def opened(tmp_path, **options) -> TokenData:
    data = TokenData(tokenizer=Bytes(), cache_dir=str(tmp_path / "cache"), seq_len=32, **options)
    data.prepare_data()
    data.setup("validate")
    return data


@pytest.mark.parametrize("reading", ["prepared", "streamed"])
def test_every_component_has_documents_of_its_own(reading, mixture, tmp_path):
    data = opened(tmp_path, source=mixture, reading=reading)
    numbers = data.documents("validation")
    assert list(numbers) == ["pages", "notes"]
    assert numbers["notes"].start == numbers["pages"].stop == len(numbers["pages"]) > 0
    rows = data.rows("validation")
    batch = rows.__getitems__([Wanted(i, i) for i in range(len(rows))])
    scored = batch.doc_ids[:, :-1][batch.loss_mask]
    assert set(scored.tolist()) == set(range(numbers["notes"].stop))
    text = data.encoder.decode(batch.tokens[:, :-1][batch.doc_ids[:, :-1] >= numbers["notes"].start].tolist())
    assert text.startswith("note") or "note 1" in text


def test_streamed_and_prepared_hold_out_the_same_documents(mixture, tmp_path):
    found = []
    for reading in ("prepared", "streamed"):
        streams = opened(tmp_path, source=mixture, reading=reading).corpus.streams("test")
        found.append([stream.read(0, stream.length).tolist() for stream in streams])
    assert found[0] == found[1]


def test_other_weights_tokenise_nothing_again(mixture, tmp_path):
    opened(tmp_path, source=mixture)
    stores = set((tmp_path / "cache" / "tokens").iterdir())
    assert len(stores) == 2
    other = Mixture(sources={**mixture.sources, "pages": Weighted(source=mixture.sources["pages"].source, weight=0.1)})
    opened(tmp_path, source=other)
    assert set((tmp_path / "cache" / "tokens").iterdir()) == stores


def test_a_store_is_trained_from_by_its_folder_alone(tiny_text, tmp_path):
    source = TextFiles(path=str(tiny_text))
    with_source = opened(tmp_path, source=source)
    store = prepare(source, Bytes().learn(iter(())), tmp_path / "cache", tokenizer=Bytes())
    alone = TokenData(store=str(store.folder), seq_len=32)
    alone.encoder_record = Bytes().learn(iter(())).record()  # as after a resume
    alone.prepare_data()
    alone.setup("validate")
    assert alone.tokenizer == Bytes()
    assert alone.fingerprint() == with_source.fingerprint()
    first, second = with_source.rows("train"), alone.rows("train")
    assert len(first) == len(second)
    for number in (0, len(first) - 1):
        place, other = first.place(number), second.place(number)
        rows = [torch.zeros(33, dtype=torch.long).numpy() for _ in range(4)]
        place[0].write(place[1], *rows[:2])
        other[0].write(other[1], *rows[2:])
        assert rows[0].tolist() == rows[2].tolist()


def test_a_store_of_another_tokenizer_is_refused_with_both_digests(tiny_text, tmp_path):
    store = prepare(TextFiles(path=str(tiny_text)), Bytes().learn(iter(())), tmp_path / "cache", tokenizer=Bytes())
    for more in ({"tokenizer": BPE(vocab_size=300)}, {"record": BPE(vocab_size=300).learn(iter(["ab"])).record()}):
        data = TokenData(store=str(store.folder), tokenizer=more.get("tokenizer", BPE()))
        data.encoder_record = more.get("record")
        with pytest.raises(RequestError, match="made with tokenizer [0-9a-f]{16}; .* is [0-9a-f]{16}"):
            data.prepare_data()


def test_components_are_opened_once(mixture, tmp_path):
    data = opened(tmp_path, source=mixture)
    assert isinstance(data.corpus, Corpus)
    assert data.corpus.streams("train") is data.corpus.streams("train")
    assert data.rows("train") is data.rows("train")
