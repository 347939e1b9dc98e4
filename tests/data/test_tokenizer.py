"""Tokenizers: every text comes back, special tokens are never made from text, byte lengths add up."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_small_lm.data.tokenizer import BPE, SPECIALS, BPEEncoder, Bytes, Ids, Pretrained, check_specials
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.plugin import Specials
from lit_small_lm.testing import check

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


@pytest.mark.parametrize("name", ENCODERS)
@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_tokenizer_json_gives_the_same_ids(name, text):
    text = text.encode(errors="replace").decode()
    encoder = ENCODERS[name]
    exported = BPEEncoder(encoder.tokenizer_json())
    assert exported.encode([text]) == encoder.encode([text])
    assert exported.decode(encoder.encode([text])[0]) == text
    assert exported.specials == encoder.specials
    assert torch.equal(exported.byte_lengths(), encoder.byte_lengths())


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


# --------------------------------------------------------------------------------------------------------- pretrained
def made_elsewhere(folder, change=None, **added):
    """A tokenizer.json as GPT-2's: byte-level BPE, the end token last, perhaps something else."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    library.add_special_tokens([*added.get("special", ["<|endoftext|>"])])
    library.add_tokens([AddedToken(text, normalized=False) for text in added.get("plain", [])])
    content = json.loads(library.to_str())
    if change:
        change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def test_a_tokenizer_of_another_model_is_taken_over(tmp_path):
    from tokenizers import Tokenizer

    file = made_elsewhere(tmp_path)
    theirs, spec = Tokenizer.from_file(str(file)), Pretrained(path=str(file))
    encoder, size = spec.learn(iter([])), theirs.get_vocab_size()
    assert encoder.encode(CORPUS[:1])[0] == theirs.encode(CORPUS[0]).ids
    assert encoder.specials == Specials(size + 2, theirs.token_to_id("<|endoftext|>"), size, size + 1)
    assert Pretrained(path=str(tmp_path)).learn(iter([])).record() == encoder.record()
    check_specials(encoder)
    check(spec)


def test_pad_and_mask_never_take_a_token_that_is_there(tmp_path):
    file = made_elsewhere(tmp_path, special=["<|mask|>", "<|endoftext|>", "<|pad|>"])
    encoder = Pretrained(path=str(file)).learn(iter([]))
    vocabulary = json.loads(file.read_text())["model"]["vocab"]
    assert min(encoder.specials.pad, encoder.specials.mask) > max(vocabulary.values()) + 3
    check(Pretrained(path=str(file)))


def test_added_tokens_that_are_text_count_their_bytes(tmp_path):
    file = made_elsewhere(tmp_path, plain=["    ", "</p>"])
    encoder = Pretrained(path=str(file)).learn(iter([]))
    text = "a    b </p>\u00e9"
    ids = encoder.encode([text])[0]
    assert len(ids) < len(text.encode())
    assert encoder.decode(ids) == text
    assert int(encoder.byte_lengths()[ids].sum()) == len(text.encode())


def test_nothing_is_added_to_a_text_and_nothing_cut_from_it(tmp_path):
    def change(content):
        content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        content["normalizer"] = {"type": "Lowercase"}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }

    encoder = Pretrained(path=str(made_elsewhere(tmp_path, change))).learn(iter([]))
    text = "The Cat sat on the mat, and so on"
    assert encoder.decode(encoder.encode([text])[0]) == text
    assert encoder.specials.end not in encoder.encode([text])[0]


def test_added_tokens_that_do_not_come_back_are_refused(tmp_path):
    with pytest.raises(RequestError, match="texts do not come back"):
        Pretrained(path=str(made_elsewhere(tmp_path, plain=["\u00e9t\u00e9"]))).learn(iter([]))


def without_bytes(content):
    content["pre_tokenizer"] = {"type": "Whitespace"}


def with_a_prefix(content):
    content["pre_tokenizer"]["add_prefix_space"] = True


def of_words(content):
    content["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_bytes, "it splits text by Whitespace; allowed: byte-level BPE"),
        (with_a_prefix, "it puts a space before every text"),
        (of_words, "it is a WordLevel model"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_tokenizer_that_loses_text_is_refused(change, says, tmp_path):
    with pytest.raises(RequestError, match=says):
        Pretrained(path=str(made_elsewhere(tmp_path, change))).learn(iter([]))


def test_a_missing_end_token_is_named_with_the_nearest(tmp_path):
    file = made_elsewhere(tmp_path, special=["<|end_of_text|>"])
    with pytest.raises(RequestError, match=r"data.tokenizer.end: '<\|endoftext\|>' .*did you mean <\|end_of_text\|>"):
        Pretrained(path=str(file)).learn(iter([]))


@pytest.mark.parametrize(
    ("path", "says"),
    [(None, "None; allowed"), ("{}/none.json", "does not exist"), ("{}/bad.json", "bad.json: .*")],
)
def test_a_file_that_cannot_be_read_is_named(path, says, tmp_path):
    (tmp_path / "bad.json").write_text('{"model": ')
    with pytest.raises(RequestError, match=f"data.tokenizer.path: .*{says}"):
        Pretrained(path=path and path.format(tmp_path)).learn(iter([]))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise Exception("no route to host\nand more")

    monkeypatch.setattr("tokenizers.Tokenizer", type("Stub", (), {"from_pretrained": staticmethod(unreachable)}))
    with pytest.raises(
        RunError, match="some/model is no file here, and could not be had from the hub: no route to host$"
    ):
        Pretrained(path="some/model").learn(iter([]))


# ------------------------------------------------------------------------------------------------ of a public network
def test_a_network_with_more_rows_than_the_tokenizer_has_ids(tmp_path):
    library = made_elsewhere(tmp_path, special=["<|end|>", "<|begin|>"]).read_text()
    encoder = BPEEncoder(library, ("<|end|>", None, None), "<|begin|>", vocab_size=400)
    size = encoder.library.get_vocab_size()
    assert encoder.specials == Specials(400, size - 2, None, None, size - 1, padding_from=size)
    assert encoder.specials.start == size - 1 and encoder.specials.filler == size - 2
    assert encoder.specials.never_drawn() == list(range(size, 400))
    assert encoder.byte_lengths().shape == (400,)
    assert encoder.decode([size - 1, *encoder.encode(["a cat"])[0], size - 2]) == "a cat"
    for spec in (Pretrained(), BPE()):
        again = spec.restore(json.loads(json.dumps(encoder.record())))
        assert again.specials == encoder.specials and again.record() == encoder.record()
    check_specials(encoder)


def test_a_network_with_fewer_rows_than_ids_is_refused(tmp_path):
    library = made_elsewhere(tmp_path, special=["<|end|>"]).read_text()
    size = BPEEncoder(library, ("<|end|>", None, None)).specials.vocab_size
    with pytest.raises(RequestError, match=f"it has {size} ids, but the network {size - 1} rows"):
        BPEEncoder(library, ("<|end|>", None, None), vocab_size=size - 1)


def test_without_a_tokenizer_text_is_refused():
    encoder = Ids(vocab_size=50, end=3, begin=4).learn(iter([]))
    assert encoder.specials == Specials(50, 3, None, None, 4)
    assert Ids().restore(json.loads(json.dumps(encoder.record()))).specials == encoder.specials
    check_specials(encoder)
    for ask in (lambda: encoder.encode(["a"]), lambda: encoder.decode([1])):
        with pytest.raises(RequestError, match="this model has no tokenizer"):
            ask()


# ------------------------------------------------------------------------------------------------------- a mask for one
def without_mask(tmp_path, rows=None):
    """The encoder of a tokenizer made elsewhere that was given neither padding nor mask."""
    file = made_elsewhere(tmp_path)
    return BPEEncoder(file.read_text(), ["<|endoftext|>", None, None], None, rows)


def test_a_mask_takes_a_row_of_its_own_at_the_end(tmp_path):
    plain = without_mask(tmp_path)
    size, encoder = plain.specials.vocab_size, plain.with_mask()
    assert encoder.specials == plain.specials._replace(vocab_size=size + 1, mask=size)
    check_specials(encoder)
    text = "the <|mask|> of a dog"
    assert encoder.encode([text]) == plain.encode([text]) and size not in encoder.encode([text])[0]
    assert int(encoder.byte_lengths()[size]) == 0
    assert BPE().restore(encoder.record()).specials == encoder.specials
    assert encoder.with_mask() is encoder


@pytest.mark.parametrize("free", [1, 3])
def test_a_mask_takes_a_free_row_first(tmp_path, free):
    size = without_mask(tmp_path).specials.vocab_size
    encoder = without_mask(tmp_path, size + free).with_mask()
    assert (encoder.specials.vocab_size, encoder.specials.mask) == (size + free, size)
    assert encoder.specials.padding_from == (size + 1 if free > 1 else None)


def test_a_mask_of_a_vocabulary_without_text():
    encoder = Ids(vocab_size=7, end=3).learn(iter([])).with_mask()
    assert encoder.specials == Specials(8, 3, None, 7)
    assert encoder.with_mask() is encoder
