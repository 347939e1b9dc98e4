"""The data module and the token store behind it."""

import numpy as np
import pytest

from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.store import prepare
from lit_small_lm.data.tokenizer import BPE, Bytes
from lit_small_lm.errors import RequestError, RunError


def test_the_store_holds_every_document_between_end_tokens(tiny_text, tmp_path):
    source = TextFiles(path=str(tiny_text))
    store = prepare(source, Bytes(), tmp_path)
    for split in ("train", "validation", "test"):
        documents, found = source.open(split), store.split(split)
        ends = [*found.starts[1:], len(found.tokens) - 1]
        texts = [store.encoder.decode(found.tokens[a:b].tolist()) for a, b in zip(found.starts, ends, strict=True)]
        assert texts == [document.text for document in documents]
        assert (found.tokens[found.starts] == store.encoder.specials.end).all()
        assert found.tokens[-1] == store.encoder.specials.end


def test_the_same_content_is_tokenised_once_and_another_tokenizer_again(tiny_text, tmp_path):
    source = TextFiles(path=str(tiny_text))
    first = prepare(source, Bytes(), tmp_path)
    written = (first.folder / "store.json").stat().st_mtime_ns
    again = prepare(TextFiles(path=str(tiny_text)), Bytes(), tmp_path)
    assert again.folder == first.folder
    assert (again.folder / "store.json").stat().st_mtime_ns == written
    assert prepare(source, BPE(vocab_size=300), tmp_path).folder != first.folder


def test_a_bpe_is_learned_from_the_training_documents_only(tiny_text, tmp_path):
    encoder = prepare(TextFiles(path=str(tiny_text)), BPE(vocab_size=400), tmp_path).encoder
    train = [document.text for document in TextFiles(path=str(tiny_text)).open("train")]
    assert encoder.record() == BPE(vocab_size=400).learn(iter(train)).record()


def test_a_damaged_store_is_named(tiny_text, tmp_path):
    store = prepare(TextFiles(path=str(tiny_text)), Bytes(), tmp_path)
    (store.folder / "train.tokens.npy").write_bytes(b"")
    with pytest.raises(RunError, match="train is damaged"):
        store.split("train")


def test_small_vocabularies_take_two_bytes_a_token(tiny_text, tmp_path):
    assert prepare(TextFiles(path=str(tiny_text)), Bytes(), tmp_path).split("train").tokens.dtype == np.uint16


@pytest.mark.parametrize(
    "wrong", [{"seq_len": 0}, {"batch_size": 0}, {"num_workers": -1}, {"tokenizer": BPE(vocab_size=3)}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError, match=f"data.{next(iter(wrong))}"):
        TokenData(**wrong)


def test_tokens_are_there_after_setup_only():
    with pytest.raises(RequestError, match="setup"):
        TokenData().store  # noqa: B018
