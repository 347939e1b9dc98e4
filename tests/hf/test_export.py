"""From a model to a folder that others load: without this package where a stock class fits, else with the wrapper."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from lit_small_lm.plugins.layer_scale import LayerScale
from safetensors.torch import load_file

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import LanguageModel, load, make_record
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.data.tokenizer import BPE, Bytes, Ids
from lit_small_lm.digests import write_sums
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError, RunError
from lit_small_lm.hf import exporting
from lit_small_lm.hf.exporting import export
from lit_small_lm.hf.importing import read_folder
from lit_small_lm.hf.run_folder import write_checkpoint
from lit_small_lm.hf.tokens import read_tokenizer
from lit_small_lm.hf.writing import check_shard_size
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.init import ScaledInit
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import LayerNorm, RMSNorm
from lit_small_lm.nn.positions import Learned
from lit_small_lm.nn.residual import LayerNormScaling, PostNorm, PreNorm
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.shapes import FixedShape

discover()
SHAPE = FixedShape(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, hidden=24)
GPT2 = BackboneSpec(
    norm=PreNorm(norm=LayerNorm()),
    layer=LayerSpec(mixer=Attention(shift="bias"), ffn=MLP(shift="bias")),
    positions=Learned(length=32),
    init=ScaledInit(),
)
STOCK = {
    "LlamaForCausalLM": (BackboneSpec(), SHAPE),
    "GPT2LMHeadModel": (GPT2, dataclasses.replace(SHAPE, n_kv_heads=None)),
}
CORPUS = ["the cat sat on the mat, and the dog sat on the log"] * 20


def model_of(backbone, shape=SHAPE, tokenizer=Bytes(), config=""):
    """A model with random weights of some size, as `load` gives one."""
    encoder = tokenizer.learn(iter(CORPUS))
    torch.manual_seed(0)
    net = Backbone(backbone, shape.resolve(), encoder.specials.vocab_size).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    parts = {"backbone": backbone, "shape": shape, "objective": NextToken(), "tokenizer": tokenizer}
    record = make_record(**parts, encoder=encoder, step=3, config=config)
    return LanguageModel(net, NextToken(), encoder, record)


@pytest.fixture
def exported(tmp_path):
    """`exported(model, ...)` -> the folder, and what came of it."""

    def make(model, name="out", **options):
        folder = tmp_path / name
        folder.mkdir()
        return folder, export(model, folder, **options)

    return make


def change(folder, **config):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    write_sums(folder, ["config.json"])


ELSEWHERE = """
import sys, torch
sys.modules["lit_small_lm"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the cat sat").input_ids
    with torch.no_grad():
        found[folder] = {"class": type(model).__name__, "ids": ids, "logits": model(torch.tensor([ids])).logits}
torch.save(found, sys.argv[1])
"""


@pytest.mark.slow
def test_stock_classes_load_it_without_this_package(exported, tmp_path):
    models = {name: model_of(*STOCK[name]) for name in STOCK}
    folders = {name: str(exported(model, name)[0]) for name, model in models.items()}
    words = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "found"), *folders.values()]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    found = torch.load(tmp_path / "found")
    for name, model in models.items():
        here = found[folders[name]]
        assert here["class"] == name
        assert here["ids"] == [0, *model.encoder.encode(["the cat sat"])[0]]
        torch.testing.assert_close(here["logits"], model.logits(torch.tensor([here["ids"]])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_class_is_found_and_agrees(name, exported):
    _, done = exported(model_of(*STOCK[name]))
    assert (done.architecture, done.reason, done.tokenizer, done.difference) == (name, "", "", 0.0)
    assert done.transformers < 1e-5 < done.largest


@pytest.mark.parametrize("norm", [RMSNorm(), RMSNorm(gain="1+w"), LayerNorm()], ids=str)
def test_layer_norm_scaling_goes_into_the_gains(norm, exported):
    backbone = dataclasses.replace(
        GPT2 if isinstance(norm, LayerNorm) else BackboneSpec(), norm=LayerNormScaling(norm=norm)
    )
    model = model_of(backbone, dataclasses.replace(SHAPE, n_kv_heads=None, n_layers=3))
    _, done = exported(model)
    stock = norm != RMSNorm(gain="1+w")  # no stock class has such gains with this scheme
    assert (done.reason == "") == stock
    assert done.difference < 1e-5


OTHERS = {
    "canon": (BackboneSpec(layer=LayerSpec(canon_at="ABCD")), "canon_at 'ABCD'"),
    "scheme": (BackboneSpec(norm=PostNorm()), "PostNorm"),
    "plug-in": (BackboneSpec(norm=LayerScale()), "LayerScale"),
    "scaling": (BackboneSpec(norm=LayerNormScaling(norm=RMSNorm(gain="none"))), "RMSNorm has no gain"),
    "convolutions alone": (BackboneSpec(layer=LayerSpec(mixer=ShortConv())), "no layer is Attention"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_class_has_is_named_and_wrapped(name, exported):
    backbone, says = OTHERS[name]
    model = model_of(backbone)
    folder, done = exported(model)
    assert done.architecture == "LitSmallLMForCausalLM" and says in done.reason
    assert (done.difference, done.transformers) == (0.0, 0.0)
    config = json.loads((folder / "config.json").read_text())
    assert config["lit_small_lm"]["backbone"] == backbone.to_dict() and config["vocab_size"] == 259
    tensors = load_file(folder / "model.safetensors")
    assert {name.removeprefix("net.") for name in tensors} == set(model.net.state_dict())
    network = read_folder(folder).network()
    assert network.spec == backbone


@pytest.mark.parametrize("objective", [BlockDiffusion(block_size=3), JointDiffusion()], ids=["blocks", "joint"])
def test_a_model_of_blocks_is_wrapped_and_sees_them_there(objective, exported):
    model = dataclasses.replace(model_of(OTHERS["canon"][0]), objective=objective)
    folder, done = exported(model)
    assert (done.difference, done.transformers) == (0.0, 0.0)
    with torch.no_grad():
        net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.arange(10).unsqueeze(0)
        torch.testing.assert_close(net(ids).logits, model.logits(ids), rtol=1e-5, atol=1e-5)
        padded = net(torch.cat([ids[:, :2], ids], 1), torch.tensor([[0, 0] + [1] * 10])).logits
        torch.testing.assert_close(padded[:, 2:], model.logits(ids), rtol=1e-4, atol=1e-4)


def test_nothing_of_this_machine_is_published(exported, tmp_path):
    model = model_of(OTHERS["canon"][0])
    model.record["plugins"] = [
        {"kind": "", "name": "Mine", "class_path": "lit_small_lm.backbone.BackboneSpec", "source": "file /home/me/x.py"}
    ]
    folder, done = exported(model)
    assert done.plugins == ["Mine (file x.py)"]
    assert json.loads((folder / "config.json").read_text())["lit_small_lm"]["plugins"][0]["source"] == "file x.py"
    assert all(str(tmp_path) not in file.read_text() for file in folder.glob("*.json"))


def test_a_plugin_that_is_not_known_is_named(exported):
    folder, _ = exported(model_of(OTHERS["canon"][0]))
    record = json.loads((folder / "config.json").read_text())["lit_small_lm"]
    mine = {"name": "Mine", "source": "file x.py", "class_path": "lit_small_lm_user.x.Mine"}
    change(folder, lit_small_lm={**record, "plugins": [mine]})
    with pytest.raises(RequestError, match=r"needs plug-in Mine .file x.py."):
        read_folder(folder)


@pytest.mark.parametrize(
    ("record", "says"),
    [(None, "no record"), ({"format": 99}, "format 99; version"), ({"format": 2, "plugins": []}, "record is damaged")],
)
def test_a_record_that_cannot_be_read(exported, record, says):
    folder, _ = exported(model_of(OTHERS["canon"][0]))
    change(folder, lit_small_lm=record)
    with pytest.raises((RequestError, RunError), match=says):
        read_folder(folder)


@pytest.mark.parametrize("rows", [2**60, -1, "many", None, [1]])
def test_a_vocabulary_that_cannot_be(exported, rows):
    folder, _ = exported(model_of(OTHERS["canon"][0]))
    change(folder, vocab_size=rows)
    with pytest.raises((RequestError, RunError), match="record is damaged|has shape"):
        read_folder(folder)


@pytest.mark.parametrize("name", [*STOCK, "canon"])
def test_bfloat16_is_stored_as_it_is_rounded(name, exported):
    model = model_of(*STOCK[name]) if name in STOCK else model_of(OTHERS[name][0])
    folder, done = exported(model, dtype="bfloat16")
    assert 0 < done.difference < 0.5 and done.transformers < 1e-5
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = {name: tensor.bfloat16().float() for name, tensor in model.net.state_dict().items()}
    found = read_folder(folder).state
    assert found.keys() == rounded.keys() and all(torch.equal(found[name], rounded[name]) for name in found)


def test_shards_have_an_index(exported):
    model = model_of(BackboneSpec())
    folder, done = exported(model, max_shard_size="8KB")
    whole, _ = exported(model, "whole")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(done.files) > 2 and sorted(set(index["weight_map"].values())) == done.files
    found = {name: load_file(folder / file)[name] for name, file in index["weight_map"].items()}
    wanted = load_file(whole / "model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in wanted.values())


@pytest.mark.parametrize("text", ["", "5", "GB", "0GB", "-5GB", "nanGB", "1e3MB", "5 GB", "5PB"])
def test_a_size_that_is_none(text):
    with pytest.raises(RequestError, match="--max_shard_size"):
        check_shard_size(text)


FAMILIES = sorted((Path(__file__).parents[2] / "configs" / "families").glob("*.yaml"))


def family(file):
    """The backbone that a file describes, and a small shape for it."""
    tree = check_request(["--model", "AutoregressiveLM", "--model.backbone", str(file)], roots()).tree
    dense = file.stem in ("gpt2", "neox")  # they have neither shared key heads nor a free hidden width
    shape = FixedShape(dim=16, n_layers=4, n_heads=2, n_kv_heads=2 if dense else 1, head_dim=8, hidden=64)
    return BackboneSpec.from_dict(tree["model"]["init_args"]["backbone"]), shape


@pytest.mark.parametrize("file", FAMILIES, ids=lambda file: file.stem)
def test_every_family_goes_out_and_comes_back(file, exported, tmp_path):
    model = model_of(*family(file))
    folder, done = exported(model)
    assert done.difference == 0.0 and done.transformers < 1e-4 < done.largest
    assert (done.reason == "") == (file.stem != "dhara"), done.reason
    again = imported_again(folder, tmp_path / "run")
    ids = torch.tensor([[0, 70, 80, 90, 100, 110]])
    assert torch.equal(again.logits(ids), model.logits(ids))
    assert again.encoder.specials == model.encoder.specials


# --------------------------------------------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(vocab_size=300)], ids=str)
def test_the_tokenizer_loads_and_begins_a_text_as_training_does(tokenizer, exported):
    model = model_of(BackboneSpec(), tokenizer=tokenizer, config="data: {seq_len: 48}")
    folder, _ = exported(model)
    found, specials = transformers.AutoTokenizer.from_pretrained(folder), model.encoder.specials
    assert set(found(["a", "bc"], padding=True)) == {"input_ids", "attention_mask"} and found.padding_side == "left"
    for text in ("the cat", "  caf\u00e9\n\U0001f642 x", ""):
        ids = found(text).input_ids
        assert ids == [specials.end, *model.encoder.encode([text])[0]]
        assert found.decode(ids, skip_special_tokens=True) == text
    named = (found.bos_token_id, found.eos_token_id, found.pad_token_id, found.mask_token_id)
    assert named == (specials.end, specials.end, specials.pad, specials.mask)
    assert found.model_max_length == 48
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 48
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [specials.pad, specials.mask] and generation["eos_token_id"] == specials.end


def test_without_a_tokenizer_there_are_weights(exported):
    folder, done = exported(model_of(BackboneSpec(), tokenizer=Ids(vocab_size=50, end=3)))
    assert done.tokenizer == "IdEncoder cannot be written as a tokenizer.json"
    assert not list(folder.glob("tokenizer*"))


# -------------------------------------------------------------------------------------------------------- round trip
def imported_again(folder, run):
    run.mkdir()
    found = read_folder(folder)
    tokens = read_tokenizer(folder, found.config, found.form.model.vocab_size)
    return load(write_checkpoint(run, found, tokens, ""))


@pytest.mark.parametrize("name", [*STOCK, "canon"])
def test_export_import_export_gives_the_same_files(name, exported, tmp_path):
    parts = STOCK[name] if name in STOCK else (OTHERS[name][0], SHAPE)
    model = model_of(*parts, config="data: {seq_len: 32}")
    first, _ = exported(model, "first")
    again = imported_again(first, tmp_path / "run")
    second, _ = exported(again, "second")
    assert again.encoder.specials == model.encoder.specials
    tensors = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((first / file).read_text()) == json.loads((second / file).read_text()), file
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    for config in configs:
        for counted in ("step", "tokens", "seconds", "accumulate", "imported", "shape_asked", "specials", "tokenizer"):
            config.get("lit_small_lm", {}).pop(counted, None)
    assert configs[0] == configs[1]


def test_a_public_model_comes_out_as_it_went_in(public_folder, exported, tmp_path):
    folder = public_folder()
    again = imported_again(folder, tmp_path / "run")
    out, done = exported(again)
    assert done.difference == 0.0
    tensors = [load_file(place / "model.safetensors") for place in (folder, out)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    generation = json.loads((out / "generation_config.json").read_text())
    rows = again.encoder.specials.vocab_size
    assert generation["suppress_tokens"] == [rows - 3, rows - 2, rows - 1]  # padding, mask, and a row without a token


# ------------------------------------------------------------------------------------------------------- verification
def corrupt(form):
    name, tensor = next(iter(form.tensors.items()))
    return dataclasses.replace(form, tensors={**form.tensors, name: tensor + 0.5})


def test_weights_that_were_exported_wrongly_are_found(exported, monkeypatch):
    right = exporting.form_for
    monkeypatch.setattr(exporting, "form_for", lambda *parts: corrupt(right(*parts)))
    with pytest.raises(RunError, match="export: logits of what was written differ by"):
        exported(model_of(BackboneSpec()))


def test_weights_that_were_written_wrongly_are_found(exported, monkeypatch):
    right = exporting.writing.write_weights
    monkeypatch.setattr(
        exporting.writing, "write_weights", lambda folder, tensors, *rest: right(folder, _zeroed(tensors), *rest)
    )
    with pytest.raises(RunError, match="is not read back as it was written"):
        exported(model_of(BackboneSpec()), dtype="bfloat16")


def _zeroed(tensors):
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def test_a_class_that_computes_something_else_is_found(exported, monkeypatch):
    from lit_small_lm.hf import model as wrapper

    right = wrapper.public_logits
    monkeypatch.setattr(wrapper, "public_logits", lambda folder, ids: right(folder, ids) * 1.01)
    with pytest.raises(RunError, match="export: logits of transformers differ by"):
        exported(model_of(BackboneSpec()))


# ----------------------------------------------------------------------------------------------------------- releases
RELEASED = {
    "a public class": (BackboneSpec(), NextToken(), Bytes()),
    "an untied head": (BackboneSpec(head="untied"), NextToken(), BPE(vocab_size=270)),
    "masked diffusion": (BackboneSpec(), MaskedDiffusion(), Bytes()),
    "blocks": (OTHERS["canon"][0], BlockDiffusion(block_size=3), BPE(vocab_size=270)),
    "a shipped plug-in": (BackboneSpec(norm=LayerScale()), NextToken(), Bytes()),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_release_is_loaded_as_its_checkpoint_would_be(name, exported):
    backbone, objective, tokenizer = RELEASED[name]
    model = dataclasses.replace(model_of(backbone, tokenizer=tokenizer), objective=objective)
    folder, done = exported(model, to="release", max_shard_size="10KB")
    assert done.difference == 0.0 and done.transformers is None and not done.reason
    found, ids = load(folder), torch.arange(12).view(2, 6)
    assert found.objective == objective and found.net.spec == backbone
    assert found.encoder.record() == model.encoder.record() and found.encoder.specials == model.encoder.specials
    assert torch.equal(found.logits(ids), model.logits(ids))
    assert set(done.files) <= set((folder / "SHA256SUMS").read_text().split())


def test_a_release_with_a_plugin_of_ones_own_needs_it_named(exported, tmp_path):
    model = model_of(BackboneSpec())
    own = {"kind": "NormScheme", "name": "Mine", "class_path": "lit_small_lm_user.mine.Mine", "digest": ""}
    model.record["plugins"] = [{**own, "source": f"file {tmp_path}/mine.py"}]
    with pytest.raises(RequestError, match=r"plug-in Mine \(file mine.py\)"):
        exported(model, to="release")
