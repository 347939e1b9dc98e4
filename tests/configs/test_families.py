"""The family files are the released models', train, and take Canon layers wherever these have a place."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.context import Context, Visibility
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.hf.comparison import differences
from lit_small_lm.hf.public import Unfit
from lit_small_lm.hf.registry import FAMILIES, fitting, read_model
from lit_small_lm.nn.moe import MoE
from lit_small_lm.shapes import FixedShape

HERE = Path(__file__)
FILES = sorted((HERE.parents[2] / "configs" / "families").glob("*.yaml"))
PUBLIC = yaml.safe_load(HERE.with_name("public_models.yaml").read_text())
EXCEPTIONS = {
    "llama": ["head"],
    "qwen3_moe": ["ffn.expert_hidden"],
    "olmoe": ["ffn.expert_hidden"],
    "deepseek_v3": [
        *(f"mixer.{name}" for name in ("kv_rank", "nope_dim", "q_rank", "rope_dim", "scale", "value_dim")),
        "positions.scaling",
        "ffn.expert_hidden",
        "ffn.shared_hidden",
    ],
}
"""In what a file differs from the released model on purpose: widths that suit small shapes, a head of the smaller
sizes, and YaRN, which came after the pre-training."""
TINY = FixedShape(dim=32, n_layers=4, n_heads=4, n_kv_heads=2, hidden=48)


@cache
def family(name: str) -> BackboneSpec:
    discover()
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(FILES[0].with_name(f"{name}.yaml"))]
    return BackboneSpec.from_dict(check_request(argv, roots()).tree["model"]["init_args"]["backbone"])


def named(file):
    return file.stem


def test_every_file_has_a_released_model_beside_it():
    assert [file.stem for file in FILES] == sorted(PUBLIC)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_file_is_the_released_model_s_backbone(file):
    """Layer by layer at the released depth, all defaults resolved; what only matters while training may differ."""
    released = read_model(PUBLIC[file.stem])
    ours = dataclasses.replace(released, backbone=family(file.stem))
    found = differences(ours, released)
    assert {_place(text) for text in found} == set(EXCEPTIONS.get(file.stem, ())), found


def _place(text: str) -> str:
    """`layer 3.ffn.expert_hidden 64 (it has 2048)` -> `ffn.expert_hidden`."""
    where = text.split(" (it has")[0].rpartition(" ")[0]
    return where.split(".", 1)[1] if where.startswith("layer ") else where


@pytest.mark.parametrize("file", FILES, ids=named)
def test_same_kinds_and_pattern_as_read(file):
    """The names of kinds of layers are the reader's too, so that options by name work alike on both."""
    released, ours = read_model(PUBLIC[file.stem]).backbone, family(file.stem)
    assert (ours.first, ours.pattern) == (released.first, released.pattern)
    assert ours.more_layers.keys() == released.more_layers.keys()


@pytest.mark.parametrize("letters", ["", "AC", "ABC", "ABCD"])
@pytest.mark.parametrize("file", FILES, ids=named)
def test_one_step_with_canon_layers(file, letters):
    spec = dataclasses.replace(family(file.stem), canon_at=letters)
    mixes = any(isinstance(kind.ffn, MoE) for kind in spec.layers(TINY.n_layers))
    torch.manual_seed(0)
    if mixes and letters == "ABCD":
        with pytest.raises(RequestError, match="canon_at: D has no place in a layer of .* with MoE"):
            Backbone(spec, TINY.resolve(), 31)
        return
    net = Backbone(spec, TINY.resolve(), 31)
    tokens = torch.randint(31, (2, 9))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(2):
        loss = net(tokens[:, :-1], Context(Visibility.rows(tokens[:, :-1])), tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("file", FILES, ids=named)
def test_the_public_class_is_found_again(file):
    """At a shape of our own; Canon layers are in none."""
    if file.stem == "dhara":
        with pytest.raises(Unfit, match="LlamaForCausalLM has no layer 0.canon_at 'AC'"):
            fitting(family(file.stem), TINY, 31)
        return
    shape = dataclasses.replace(TINY, n_kv_heads=4) if file.stem in ("gpt2", "neox") else TINY
    public, config = fitting(family(file.stem), shape, 31)
    assert public is FAMILIES[PUBLIC[file.stem]["model_type"]]
    assert differences(public.read(config), dataclasses.replace(public.read(config), backbone=family(file.stem))) == []
