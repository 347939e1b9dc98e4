"""Every norm scheme goes out: as a public class where it folds into one, else by the wrapper, with a word on why."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import LanguageModel, make_record
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.hf.exporting import export, form_for
from lit_small_lm.hf.folding import folded
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.nn.prores import ProRes
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.shapes import FixedShape

SHAPE = FixedShape(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, hidden=24)
FAMILIES = {
    **runpy.run_path(str(Path(__file__).parents[1] / "norm_schemes.py"))["FAMILIES"],
    "norm of values": BackboneSpec(layer=LayerSpec(mixer=Attention(v_norm=RMSNorm()))),
    "value residual": BackboneSpec(layer=LayerSpec(mixer=Attention(value_residual="learned"))),
}
PUBLIC = ("pre", "scaling", "scaling by branch, in the gain", "scaling after the branch", "prores", "completep")
"""What is a Llama, once factors are in its weights."""
FIELDS = {
    "pre, DyT": "norm.norm DyT",
    "scaling, Derf": "norm.norm Derf",
    "peri": "embedding_scale 'one'",  # it is Gemma 3's but for that
    "reordered": "layer 0.mixer.qk_norm null",  # it is OLMo 2's but for that
    "centred canon": "layer 0.canon CentredCanon",
    "norm of values": "layer 0.mixer.v_norm RMSNorm",
    "value residual": "layer 0.mixer.value_residual 'learned'",
}
"""What no public class has, where it is not the scheme itself."""


def model_of(family):
    """A model with random weights of some size."""
    encoder = Bytes().learn(iter([]))
    torch.manual_seed(0)
    net = Backbone(family, SHAPE.resolve(), encoder.specials.vocab_size).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    parts = {"backbone": family, "shape": SHAPE, "objective": NextToken(), "tokenizer": Bytes()}
    return LanguageModel(net, NextToken(), encoder, make_record(**parts, encoder=encoder, step=3))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_no_public_class_has_is_named(name):
    family = FAMILIES[name]
    form = form_for(model_of(family))
    if name in PUBLIC:
        assert form.config["architectures"] == ["LlamaForCausalLM"] and form.reason == ""
        return
    assert form.config["architectures"] == ["LitSmallLMForCausalLM"]
    assert FIELDS.get(name, f"norm {type(family.norm).__name__} is not PreNorm") in form.reason
    assert len(form.reason) < 120 and form.reason.isprintable()


@pytest.mark.slow  # all of them, with transformers
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_gives_the_same_logits(name, tmp_path):
    done = export(model_of(FAMILIES[name]), tmp_path)
    assert done.difference <= (1e-4 * done.largest if name in PUBLIC else 0) and done.largest > 1
    assert done.transformers <= 1e-4 * done.largest


def test_a_ramp_is_not_part_of_a_trained_model():
    """What is left of ProRes is the scheme inside it, whatever its steps are."""
    inner = FAMILIES["deep"]
    family = dataclasses.replace(inner, norm=ProRes(scheme=inner.norm, steps=10**6))
    state = model_of(family).net.state_dict()
    plain, found = folded(family, SHAPE.resolve(), state)
    assert plain == inner and found.keys() == model_of(inner).net.state_dict().keys()
