"""From a public folder to a run: every tensor is accounted for, logits are the public class's, its tokenizer comes."""

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lit_small_lm.backbone import BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import FORMAT, load
from lit_small_lm.context import Context, Visibility
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.hf.importing import read_folder
from lit_small_lm.hf.run_folder import check_loaded, write_checkpoint
from lit_small_lm.hf.tokens import read_tokenizer, with_new_rows
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.shapes import FixedShape

discover()
COMMON = {"vocab_size": 61, "bos_token_id": 60, "eos_token_id": 60}
CONFIGS = {
    "gpt2": transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=32, **COMMON),
    "llama": transformers.LlamaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        **COMMON,
    ),
    "tied": transformers.LlamaConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=40,
        tie_word_embeddings=True,
        **COMMON,
    ),
}
TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def saved(tmp_path):
    """`saved("gpt2")` -> a folder as transformers writes it, and the model in it."""

    def make(name, dtype=torch.float32, **options):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
        model.to(dtype).save_pretrained(tmp_path / name, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        return tmp_path / name, model.eval()  # a model turned to float32 would keep rotary tables as they were

    return make


def logits(folder):
    return read_folder(folder).network()(TOKENS, Context(Visibility.rows(TOKENS)))


def change(folder, **config):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def rewritten(folder, edit):
    """The folder's weights after `edit(tensors)`."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


# ----------------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_public_class(saved, name):
    folder, model = saved(name)
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_shards_give_the_same(saved, name):
    folder, model = saved(name, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_become_float32(saved, dtype):
    folder, model = saved("llama", dtype)
    found = read_folder(folder)
    assert found.dtypes == ({torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}[dtype],)
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_a_bare_model_has_no_prefix(saved):
    folder, model = saved("gpt2")

    def without_prefix(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)}

    rewritten(folder, without_prefix)
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_a_tied_head_may_stand_in_the_file_or_alone(saved):
    folder, model = saved("tied")
    rewritten(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    rewritten(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_a_head_that_is_not_the_embedding_contradicts_tying(saved):
    folder, _ = saved("tied")
    rewritten(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    with pytest.raises(RequestError, match="lm_head.weight is not the embedding"):
        read_folder(folder)


def drop(name):
    return lambda tensors: tensors.pop(name)


def replace(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (drop(NORM), RequestError, "tensor model.norm.weight is missing$"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors)[:3]], RequestError, r"is missing .and 2 more"),
        (replace("model.extra", torch.ones(2)), RequestError, "tensor model.extra is not one of this class"),
        (replace(NORM, torch.ones(25)), RequestError, r"weight has shape .25,.; config.json makes it .24,."),
        (replace(NORM, torch.ones(1, 24)), RequestError, r"has shape .1, 24."),
        (replace(NORM, torch.ones(24, dtype=torch.int8)), RequestError, "has type I8; allowed: F64, F32, F16, BF16"),
        (replace(NORM, torch.full((24,), torch.nan)), RunError, "model.norm.weight holds numbers not finite"),
        (replace(NORM, torch.full((24,), torch.inf)), RunError, "model.norm.weight holds numbers not finite"),
    ],
    ids=["missing", "several", "unknown", "shape", "dimensions", "type", "nan", "inf"],
)
def test_what_does_not_fit_is_named(saved, edit, error, says):
    folder, _ = saved("llama")
    rewritten(folder, edit)
    with pytest.raises(error, match=says):
        read_folder(folder)


def test_nothing_is_read_of_a_folder_that_does_not_fit(saved, monkeypatch):
    folder, _ = saved("llama")
    change(folder, hidden_size=32)
    monkeypatch.setattr("lit_small_lm.folder.Weights.__getitem__", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(RequestError, match="has shape"):
        read_folder(folder)


ROUTED = {"model_type": "mixtral", "num_hidden_layers": 10_000, "num_local_experts": 2**16, "vocab_size": 61}


def test_a_few_bytes_do_not_ask_for_millions_of_modules(saved):
    folder, _ = saved("llama")
    (folder / "config.json").write_text(json.dumps(ROUTED))
    with pytest.raises(RequestError, match="655,360,000 experts in 10,000 layers; allowed: at most 131,072 in all"):
        read_folder(folder)
    moe = MoE(expert=GatedMLP(), router=SoftmaxRouter(), n_experts=2**30)
    record = {"format": FORMAT, "backbone": BackboneSpec(layer=LayerSpec(ffn=moe)).to_dict(), "plugins": []}
    record |= {"shape": FixedShape().to_dict(), "objective": NextToken().to_dict()}
    own = {"model_type": "lit_small_lm", "vocab_size": 61, "lit_small_lm": record}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(RequestError, match="4,294,967,296 experts in 4 layers"):
        read_folder(folder)


def test_code_that_a_configuration_names_is_not_looked_at(saved):
    folder, model = saved("llama")
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    code = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation_internal": "evil/kernel"}
    change(folder, **code, trust_remote_code=True)
    torch.testing.assert_close(logits(folder), model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_a_model_that_looks_both_ways_is_refused(saved):
    folder, _ = saved("llama")
    change(folder, is_causal=False)
    with pytest.raises(RequestError, match="llama: its attention looks both ways; allowed: causal models"):
        read_folder(folder)


# --------------------------------------------------------------------------------------------------------- tokenizer
def tokens_of(folder, **config):
    """The tokenizer of a folder whose network has as many rows as its config.json says."""
    change(folder, **config)
    found = json.loads((folder / "config.json").read_text())
    return read_tokenizer(folder, found, found["vocab_size"])


def test_missing_tokens_get_free_rows(public_folder):
    folder = public_folder()
    found, library = tokens_of(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    size, specials = library.get_vocab_size(), found.encoder.specials
    assert specials.vocab_size == size + 3 and (specials.pad, specials.mask) == (size, size + 1)
    assert specials.never_drawn() == [size, size + 1, size + 2] and found.notes == ()
    assert specials.end == specials.start == library.token_to_id("<|endoftext|>")
    assert found.encoder.encode(["the cat"]) == [library.encode("the cat").ids]


def test_one_free_row_is_for_padding(public_folder):
    folder = public_folder()
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    specials = read_tokenizer(folder, {"eos_token_id": size - 1}, size + 1).encoder.specials
    assert (specials.pad, specials.mask, specials.padding_from) == (size, None, None)


def test_without_free_rows_there_is_no_padding_and_no_mask(public_folder):
    folder = public_folder()
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    found = tokens_of(folder, vocab_size=size)
    assert found.encoder.specials[2:] == (None, None, None, None)
    assert found.notes == ("the tokenizer has no padding and no mask token, and the network no free row for one",)
    grown = with_new_rows(found).encoder.specials
    assert (grown.vocab_size, grown.pad, grown.mask) == (size + 2, size, size + 1)


def add_special(folder, *tokens):
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.add_special_tokens(list(tokens))
    library.save(str(folder / "tokenizer.json"))
    return library


def test_special_tokens_that_are_there_are_used(public_folder):
    folder = public_folder()
    library = add_special(folder, "<s>", "<pad>", "<mask>")
    settings = {"pad_token": {"content": "<pad>"}, "mask_token": "<mask>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    specials = tokens_of(folder, bos_token_id=None).encoder.specials
    ids = [library.token_to_id(token) for token in ("<|endoftext|>", "<pad>", "<mask>", "<s>")]
    assert [specials.end, specials.pad, specials.mask, specials.begin] == ids
    assert specials.start == specials.begin


def test_ids_of_ordinary_tokens_are_not_taken(public_folder):
    """As in a public file that calls "!" its padding and "#" the end."""
    folder = public_folder()
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    found = tokens_of(folder, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found.encoder.specials.end == library.token_to_id("<|endoftext|>")
    assert found.encoder.specials.begin is None and found.encoder.specials.pad == library.get_vocab_size()
    assert [note.split(" is ")[0] for note in found.notes] == [
        "config.json: eos_token_id 2", "config.json: bos_token_id 1", "config.json: pad_token_id 0",
    ]  # fmt: skip


def test_the_end_of_a_text_has_to_be_known(public_folder):
    folder = public_folder()
    assert tokens_of(folder, eos_token_id=None).encoder.specials.end == 270  # the only special token
    add_special(folder, "<s>")
    with pytest.raises(RequestError, match=r"--end: missing.*special tokens: <.endoftext.>, <s>"):
        tokens_of(folder, eos_token_id=None)
    config = json.loads((folder / "config.json").read_text())
    rows = config["vocab_size"]
    assert read_tokenizer(folder, config, rows, "<s>").encoder.specials.end == 271
    assert read_tokenizer(folder, config, rows, "271").encoder.specials.end == 271
    with pytest.raises(RequestError, match="--end: '<S>' is no token of the tokenizer; did you mean <s>"):
        read_tokenizer(folder, config, rows, "<S>")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def other_tokenizer(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def larger_tokenizer(folder):
    add_special(folder, "<1>", "<2>", "<3>", "<4>")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (no_tokenizer, "no tokenizer.json"),
        (other_tokenizer, "it splits text by Metaspace"),
        (larger_tokenizer, "ids, but the network 273 rows"),
    ],
)
def test_without_a_suitable_tokenizer_there_are_ids(public_folder, edit, says):
    folder = public_folder()
    edit(folder)
    found = tokens_of(folder, vocab_size=273, eos_token_id=[270, 5], pad_token_id=7)
    assert says in found.notes[0] and found.notes[0].endswith("the model takes and gives token ids, no text")
    assert found.encoder.specials[:5] == (273, 270, 7, None, None)
    with pytest.raises(RequestError, match="this model has no tokenizer"):
        found.encoder.encode(["a"])
    grown = with_new_rows(found).encoder.specials
    assert (grown.vocab_size, grown.pad, grown.mask) == (274, 7, 273)
    with pytest.raises(RequestError, match="--end: missing"):
        tokens_of(folder, eos_token_id=None)


@pytest.mark.parametrize("end", ["273", "-1", "x", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_an_end_that_is_no_id_is_refused(public_folder, end):
    folder = public_folder()
    (folder / "tokenizer.json").unlink()
    config = {"eos_token_id": 273}
    with pytest.raises(RequestError, match="--end: .*; without a tokenizer allowed: an id from 0 to 272"):
        read_tokenizer(folder, config, 273, end)
    with pytest.raises(RequestError, match="--end: missing; eos_token_id of config.json is 273; allowed: an id from 0"):
        read_tokenizer(folder, config, 273)


def test_an_end_that_is_no_token_is_refused(public_folder):
    folder = public_folder()
    for end in ("\N{CIRCLED DIGIT ONE}", "9" * 5000):
        with pytest.raises(RequestError, match="--end: .* is no token of the tokenizer"):
            read_tokenizer(folder, {}, 273, end)


def test_a_damaged_tokenizer_is_named(public_folder):
    folder = public_folder()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(RequestError, match="tokenizer.json: "):
        tokens_of(folder)


# --------------------------------------------------------------------------------------------------------------- run
def test_a_run_is_written_and_loads(public_folder, tmp_path):
    folder = public_folder()
    model = read_folder(folder)
    found = tokens_of(folder)
    loaded = load(write_checkpoint(tmp_path, model, found, "seed_everything: 0"))
    check_loaded(model, loaded)
    assert loaded.encoder.specials == found.encoder.specials
    assert loaded.record["imported"] == {"model_type": "llama", "dtypes": ["F32"], "rows": 274, "max_length": 64}
    assert "".join(loaded.generate("the cat", 5))
    with pytest.raises(RunError, match="other logits, by up to"):
        torch.nn.init.zeros_(loaded.net.close.weight)
        check_loaded(model, loaded)
    model.state["close.weight"].fill_(3e38)
    with pytest.raises(RunError, match="with these weights and this config.json logits are not finite"):
        check_loaded(model, loaded)


def test_new_rows_leave_the_logits_and_add_little(public_folder, tmp_path):
    """A new row's logit is the mean of the others: the softmax's sum grows by one part in V at most."""
    folder = public_folder()
    no_tokenizer(folder)
    model = read_folder(folder)
    rows = model.form.model.vocab_size
    found = with_new_rows(read_tokenizer(folder, model.config, rows))
    loaded = load(write_checkpoint(tmp_path, model, found, ""))
    ids = torch.randint(rows, (2, 12), generator=torch.Generator().manual_seed(0))
    before, after = model.network()(ids, Context(Visibility.rows(ids))), loaded.logits(ids)
    assert after.shape[-1] == rows + 2
    torch.testing.assert_close(after[..., :rows], before)
    torch.testing.assert_close(after[..., rows:], before.mean(-1, keepdim=True).expand(-1, -1, 2))
    added = after.logsumexp(-1) - before.logsumexp(-1)
    assert added.min() > 0 and added.max() <= math.log(1 + 2 / rows) + 1e-6
