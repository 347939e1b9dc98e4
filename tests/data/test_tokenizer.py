"""Tokenizers: every text comes back, special tokens are never made from text, byte lengths add up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_small_lm.data.tokenizer import BPE, SPECIALS, Bytes, check_specials
from lit_small_lm.errors import RequestError

CORPUS = ["the cat sat on the mat, and the dog sat on the log"] * 20
ENCODERS = {"bytes": Bytes().learn(iter(CORPUS)), "bpe": BPE(vocab_size=300).learn(iter(CORPUS))}


@pytest.mark.parametrize("name", ENCODERS)
@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_every_text_comes_back(name, text):
    text = text.encode(errors="replace").decode()  # lone surrogates are no text
    encoder = ENCODERS[name]
    ids = encoder.encode([text])[0]
    assert encoder.decode(ids) == text
    assert int(encoder.byte_lengths()[ids].sum()) == len(text.encode())
    assert not set(ids) & {encoder.specials.end, encoder.specials.pad, encoder.specials.mask}


@pytest.mark.parametrize("name", ENCODERS)
def test_special_tokens_written_in_a_text_are_ordinary_text(name):
    encoder = ENCODERS[name]
    ids = encoder.encode(["".join(SPECIALS)])[0]
    assert not set(ids) & {encoder.specials.end, encoder.specials.pad, encoder.specials.mask}
    assert encoder.decode(ids) == "".join(SPECIALS)


@pytest.mark.parametrize("spec", [Bytes(), BPE(vocab_size=300)], ids=str)
def test_the_record_restores_the_encoder(spec):
    encoder = spec.learn(iter(CORPUS))
    again = spec.restore(encoder.record())
    assert again.encode(["the dog"]) == encoder.encode(["the dog"])
    assert again.specials == encoder.specials


def test_a_small_corpus_fills_fewer_ids_than_asked_for():
    assert 259 <= BPE(vocab_size=5000).learn(iter(["ab ab ab"])).specials.vocab_size < 300


def test_special_ids_that_coincide_are_refused():
    encoder = Bytes().learn(iter([]))
    check_specials(encoder)
    encoder.specials = encoder.specials._replace(mask=encoder.specials.pad)
    with pytest.raises(RequestError, match="share id 1"):
        check_specials(encoder)
    encoder.specials = encoder.specials._replace(mask=999)
    with pytest.raises(RequestError, match="mask id 999"):
        check_specials(encoder)
