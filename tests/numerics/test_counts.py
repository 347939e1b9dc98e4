"""Exact parameter counts of public models from their configurations, without allocating a weight.

Totals are those of transformers' classes, and of the models' pages where these give them; public_counts.json has them
with their sources. Of dhara-250m and of the study's GPT-2 shapes only roundings are published.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import BertModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.hf.public import Model
from lit_small_lm.hf.registry import read_model
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.positions import NoPositions
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.planning.counts import Parameters, parameters
from lit_small_lm.planning.outline import Outline
from lit_small_lm.shapes import FixedShape

COUNTS = {entry["name"]: entry for entry in json.loads(Path(__file__).with_name("public_counts.json").read_text())}
EXPERTS = [name for name, entry in COUNTS.items() if "active" in entry]
MANY = {"Qwen3-30B-A3B", "DeepSeek-V3"}
"""Those of thousands of experts, which take seconds to build in full."""


def counted(model: Model) -> Parameters:
    return parameters(Outline(model.backbone, model.shape.resolve(), model.vocab_size), model.extras)


def with_head(model: Model, head: str) -> Model:
    return dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, head=head))


@pytest.mark.parametrize("name", COUNTS)
def test_total(name):
    assert counted(read_model(COUNTS[name]["config"])).total == COUNTS[name]["total"]


@pytest.mark.parametrize("name", sorted(COUNTS.keys() - MANY))
def test_total_of_the_whole_network(name):
    """Every layer built, on the meta device, and every tensor counted."""
    model = read_model(COUNTS[name]["config"])
    with torch.device("meta"):
        net = Backbone(model.backbone, model.shape.resolve(), model.vocab_size)
    beside = sum(model.extras.values())
    assert sum(parameter.numel() for parameter in net.parameters()) + beside == COUNTS[name]["total"]


@pytest.mark.parametrize("name", [name for name, entry in COUNTS.items() if "dhara" not in name])
def test_total_is_the_public_class_s(name):
    """BERT's is the model without a head; where the file has no number of heads any that fits will do."""
    given = {key: value for key, value in COUNTS[name]["config"].items() if key != "model_type"}
    if "n_embd" in given:
        given.setdefault("n_head", given["n_embd"] // 64)
    config = CONFIG_MAPPING[COUNTS[name]["config"]["model_type"]](**given)
    public = BertModel if config.model_type == "bert" else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model = public(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]["total"]


@pytest.mark.parametrize("name", sorted(MANY))
def test_layers_are_multiplied_exactly(name):
    """At five layers the network built in full has what its outline says: with `test_total`, layers are equal."""
    config = {**COUNTS[name]["config"], "num_hidden_layers": 5}
    model = read_model(config)
    with torch.device("meta"):
        net = Backbone(model.backbone, model.shape.resolve(), model.vocab_size)
    assert sum(parameter.numel() for parameter in net.parameters()) == counted(model).total
    assert sum(buffer.numel() for buffer in net.buffers()) == counted(model).buffers


@pytest.mark.parametrize("name", EXPERTS)
def test_active_parameters(name):
    assert counted(read_model(COUNTS[name]["config"])).active == COUNTS[name]["active"]


def test_a_router_s_bias_is_no_parameter():
    """DeepSeek-V3 stores 671,026,419,200 values in its main model, 58 * 256 of them biases of routers."""
    found = counted(read_model(COUNTS["DeepSeek-V3"]["config"]))
    assert found.buffers == COUNTS["DeepSeek-V3"]["buffers"] == 14_848
    assert found.total + found.buffers == 671_026_419_200
    assert found.active - 129_280 * 7_168 == 36_625_603_584  # without the input's table


def test_a_tie_that_the_file_leaves_out():
    """dhara-70m's config.json does not say that its embeddings are tied; untied it would have 90.66M."""
    config = {key: value for key, value in COUNTS["dhara-70m"]["config"].items() if key != "tie_word_embeddings"}
    model = read_model(config)
    assert counted(model).total == 71_344_512
    assert counted(with_head(model, "untied")).total == 90_661_248
    assert counted(model).components["canon"] == 98_304


def test_a_tie_that_the_file_denies():
    """MobileLLM-125M's says untied; its published 124.6M need sharing."""
    model = read_model({**COUNTS["MobileLLM-125M"]["config"], "tie_word_embeddings": False})
    assert counted(model).total == 143_067_456
    assert counted(with_head(model, "tied")).total == 124_635_456


def test_canon_layers_of_dhara_250m():
    """Published: 638,976. Over gate and up, as Canon's authors have it, D would make them 917,504."""
    model = read_model(COUNTS["dhara-250m-ar-base"]["config"])
    assert counted(model).components["canon"] == 638_976
    layer = model.backbone.layer
    spread = dataclasses.replace(layer, ffn=dataclasses.replace(layer.ffn, canon_span="gate_up"))
    official = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, layer=spread))
    assert counted(official).components["canon"] == 917_504


@pytest.mark.parametrize(
    ("n_layers", "dim", "layer", "total"), [(12, 768, 7_077_888, 108_375_552), (24, 1280, 19_660_800, 510_927_360)]
)
def test_worked_examples_without_norms_biases_and_positions(n_layers, dim, layer, total):
    """12 d^2 a layer and one table of 30,522 ids."""
    bare = LayerSpec(mixer=Attention(), ffn=MLP())
    backbone = BackboneSpec(norm=PreNorm(norm=RMSNorm(gain="none")), layer=bare, positions=NoPositions())
    shape = FixedShape(dim=dim, n_layers=n_layers, n_heads=dim // 64, hidden=4 * dim)
    found = counted(Model(backbone, shape, 30_522))
    assert found.total == total
    assert found.non_embedding == n_layers * layer
