"""What we write is what the public classes read: configurations, names, and defaults that cannot drift apart."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Visibility
from lit_small_lm.hf.family import ANY_CLASS
from lit_small_lm.hf.names import to_ours, to_theirs
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.registry import FAMILIES, STOCK, read_model

parity = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("parity.py"))))
OURS_ONLY = {"is_causal"}
"""Fields that are in no configuration class, though the modules honour them."""
OLDER = {
    "gemma3_text": {"sliding_window_pattern", "rope_local_base_freq"},
    "gpt_neox": {"rotary_pct", "rotary_emb_base"},
    "mixtral": {"norm_topk_prob"},
    "deepseek_v3": {"moe_layer_freq", "scoring_func", "topk_method"},
    "olmoe": {"sliding_window"},
    "bert": {"position_embedding_type"},
}
"""Fields of older files, or of remote code; their defaults are tried below by what they amount to."""
NO_MATTER = {
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp", "output_router_logits",
    "rope_parameters", "classifier_dropout", "is_decoder", "num_mtp_layers", "reorder_and_upcast_attn",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
}  # fmt: skip
"""Fields that do not change the logits of a full pass. `rope_parameters` is read by itself."""
PUBLIC = [family for family in FAMILIES.values() if family.model_type in CONFIG_MAPPING]


def fields(family):
    """Field -> default of the public configuration class, its own ones and those that are ours to read."""
    config = CONFIG_MAPPING[family.model_type]
    inherited = {field.name for field in dataclasses.fields(config.__mro__[1])} - {"tie_word_embeddings"}
    found = {field.name: field.default for field in dataclasses.fields(config)}
    read = family.defaults.keys() | family.fixed.keys()
    return {name: default for name, default in found.items() if name not in inherited or name in read}


@pytest.mark.parametrize("family", PUBLIC, ids=lambda family: family.model_type)
def test_defaults_are_the_public_class_s(family):
    theirs, left_out = fields(family), OURS_ONLY | OLDER.get(family.model_type, set())
    for key, value in {**family.fixed, **family.defaults}.items():
        if key not in left_out:
            assert theirs[key] == value, key
        else:
            assert key not in theirs, f"{key} has become a field"


@pytest.mark.parametrize("family", PUBLIC, ids=lambda family: family.model_type)
def test_every_field_of_the_public_class_is_read_or_does_not_matter(family):
    read = family.defaults.keys() | family.fixed.keys() | ANY_CLASS.keys()
    headless = {"tie_word_embeddings"} if family.model_type == "bert" else set()
    assert fields(family).keys() - read - NO_MATTER - headless == set()


@pytest.mark.parametrize("family", STOCK, ids=lambda family: family.model_type)
def test_default_rotary_base(family):
    """And the defaults of older fields, by what the public class makes of an empty file."""
    public, ours = CONFIG_MAPPING[family.model_type](), family.read({})
    if family.model_type == "gpt2":
        return
    rope, positions = public.rope_parameters, ours.backbone.positions
    if family.model_type == "gemma3_text":
        everywhere = ours.backbone.more_layers["global"].positions
        assert (rope["full_attention"]["rope_theta"], rope["sliding_attention"]["rope_theta"]) == (
            everywhere.base,
            positions.base,
        )
        assert [kind == "full_attention" for kind in public.layer_types] == [
            kind.mixer.window is None for kind in ours.backbone.layers(public.num_hidden_layers)
        ]
    else:
        assert (rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)) == (positions.base, positions.share)
    assert public.max_position_embeddings == ours.max_length


READ_ALONE = ("lfm2", "convolutions alone, longer kernel")
"""The public class computes it, but not with the cache that it has by default: no model becomes one."""


@pytest.mark.parametrize("case", sorted({*parity.all_cases()} - {READ_ALONE}), ids=lambda case: "-".join(case))
def test_written_configuration_is_read_as_the_same_model(case):
    family, name = case
    given = parity.cases(family)[name]
    model = read_model(json.loads(json.dumps(given)))
    written = json.loads(json.dumps(FAMILIES[family].write(model)))
    assert read_model(written) == model
    public = CONFIG_MAPPING[family](**{key: value for key, value in written.items() if key != "model_type"})
    assert public.architectures == [FAMILIES[family].architecture]


def test_what_a_public_class_cannot_run_is_not_written():
    family, name = READ_ALONE
    with pytest.raises(Unfit, match="Lfm2ForCausalLM: no layer is Attention"):
        FAMILIES[family].write(read_model(parity.cases(family)[name]))


@pytest.mark.parametrize("family", parity.FAMILIES_UNDER_TEST)
def test_written_folder_loads_in_transformers(family, tmp_path):
    """Without this package: plain `AutoModelForCausalLM`, every tensor used and none missing, logits equal."""
    odd = list(parity.FAMILIES_UNDER_TEST[family]["odd"])
    for case in ("base", odd[0]):
        model = read_model(parity.cases(family)[case])
        net, tokens = _network(model), parity.text(61)
        _write(tmp_path, family, model, net)
        public, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
        assert not any(info.values()), info
        with torch.no_grad():
            theirs = public.eval()(tokens, use_cache=False).logits
            ours = net(tokens, Context(Visibility.rows(tokens)))
        assert parity.relative(ours, theirs) < parity.PLAIN, case


@pytest.mark.parametrize("family", ["deepseek_v3", "olmoe"])
def test_widths_that_the_public_class_does_not_know(family, tmp_path):
    """Ours may join weights in other groups than what is read back does; the files are the same."""
    read = read_model(parity.cases(family)["base"])
    shape = dataclasses.replace(read.shape, n_kv_heads=2, hidden=36 if family == "olmoe" else read.shape.hidden)
    moe = read.backbone.layer.ffn
    layer = dataclasses.replace(
        read.backbone.layer, ffn=dataclasses.replace(moe, expert_hidden=moe.expert_hidden or 20)
    )
    model = dataclasses.replace(read, shape=shape, backbone=dataclasses.replace(read.backbone, layer=layer))
    net, tokens = _network(model), parity.text(61)
    theirs = _write(tmp_path, family, model, net)
    again = read_model(FAMILIES[family].write(model))
    assert again.shape != model.shape
    twin = Backbone(again.backbone, again.shape.resolve(), 61).eval()
    twin.load_state_dict(to_ours(FAMILIES[family].names(again), theirs))
    with torch.no_grad():
        wanted, found = (n(tokens, Context(Visibility.rows(tokens))) for n in (net, twin))
    assert parity.relative(found, wanted) < parity.PLAIN


def _network(model: Model) -> Backbone:
    torch.manual_seed(0)
    net = Backbone(model.backbone, model.shape.resolve(), model.vocab_size).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return net


def _write(folder: Path, family: str, model: Model, net: Backbone) -> dict:
    """config.json and model.safetensors; the map taken back and forth gives the very same tensors."""
    entries = FAMILIES[family].names(model)
    theirs = {name: tensor.contiguous() for name, tensor in to_theirs(entries, net.state_dict()).items()}
    again = to_ours(entries, theirs)
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())
    (folder / "config.json").write_text(json.dumps({**FAMILIES[family].write(model), **parity.NO_TOKENS}))
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    return theirs
