"""Weights in several formats, and decoding memory against published figures."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.hf.registry import read_model
from lit_small_lm.nn.attention import Attention
from lit_small_lm.nn.mlp import GatedMLP
from lit_small_lm.nn.moe import MoE
from lit_small_lm.nn.routers import SoftmaxRouter
from lit_small_lm.planning.counts import parameters
from lit_small_lm.planning.inference import Format, cache, canvas, weights
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Dims

COUNTS = Path(__file__).parents[1] / "numerics" / "public_counts.json"
PUBLIC = {entry["name"]: entry["config"] for entry in json.loads(COUNTS.read_text())}
DIMS = Dims(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, hidden=48)


def public(name, **changes):
    model = read_model({**PUBLIC[name], **changes})
    return Outline(model.backbone, model.shape.resolve(), model.vocab_size)


@pytest.mark.parametrize(("bits", "gigabytes"), [(32, 28), (16, 14), (8, 7), (4, 3.5)])
def test_seven_billion_nominal_weights(bits, gigabytes):
    """Codes alone, as the rule of thumb has it; the one scale of a single row is two bytes."""
    assert Format(bits).bytes_of(1, 7 * 10**9) - 2 == gigabytes * 10**9


@pytest.mark.parametrize(
    ("form", "bits"),
    [(Format(8), 8 + 16 / 256), (Format(4, 32), 4.5), (Format(4, 64), 4.25), (Format(4, 128), 4.125)],
)
def test_true_bits_of_a_weight(form, bits):
    """A 16-bit scale for a row of 256, or for each group in it."""
    assert form.bytes_of(10, 256) * 8 == 10 * 256 * bits
    assert Format(4, 128).bytes_of(10, 100) == 10 * 50 + 10 * 2  # a group may be shorter


def test_llama_2_7b():
    outline = public("Llama-2-7b")
    found = weights(outline, parameters(outline))
    assert found["fp32"].total_bytes == 4 * 6_738_415_616
    assert found["bf16"].total_bytes == 2 * 6_738_415_616
    assert found["int4 in groups of 32"].bits_per_quantised_weight == 4.5
    assert found["int8 per row"].unquantised_bytes == 2 * (2 * 32_000 * 4096 + 65 * 4096)


def test_four_bits_of_a_small_network_are_more():
    """Of dhara-70m the table is 27 %: half a byte a parameter would be 1.9 times too little."""
    outline = public("dhara-70m")
    counted = parameters(outline)
    found = weights(outline, counted)["int4 in groups of 32"]
    assert found.total_bytes / (counted.total / 2) == pytest.approx(1.9, abs=0.02)
    assert found.unquantised_bytes == 2 * (counted.total - counted.matmul + 50_304 * 384)


def test_routers_are_left_alone():
    mixture = MoE(expert=GatedMLP(), router=SoftmaxRouter(top_k=2), n_experts=4)
    outline = Outline(BackboneSpec(layer=LayerSpec(ffn=mixture)), DIMS, 50)
    counted = parameters(outline)
    found = weights(outline, counted)["int8 per row"]
    left = 50 * 32 + counted.components["norms"] + counted.components["routers"]
    assert found.unquantised_bytes == 2 * left


@pytest.mark.parametrize(
    ("name", "bytes_a_token"),
    [
        ("gpt2", 36_864),
        ("Llama-2-7b", 524_288),
        ("Llama-3-8B", 131_072),
        ("Llama-3-70B", 327_680),
        ("Qwen2-72B", 327_680),
        ("Qwen3-0.6B", 114_688),
        ("SmolLM2-135M", 23_040),
        ("dhara-70m", 24_576),
        ("LFM2-350M", 12_288),
        ("DeepSeek-V3", 70_272),
    ],
)
def test_cache_of_public_models(name, bytes_a_token):
    assert cache(public(name), 1).per_token_bytes == bytes_a_token


def test_llama_3_8b_at_8192_positions_is_one_gibibyte():
    assert cache(public("Llama-3-8B"), 8192).total_bytes == 2**30


def test_windows_need_no_more_than_they_see():
    narrow = LayerSpec(mixer=Attention(window=10))
    spec = BackboneSpec(layer=narrow, more_layers={"wide": LayerSpec()}, pattern=("layer", "layer", "wide"))
    found = cache(Outline(spec, DIMS, 50), 100)
    each = 2 * 2 * 8 * 2  # keys and values, heads, channels, bytes
    assert found.per_token_bytes == 3 * each
    assert found.total_bytes == 3 * each * 100
    assert found.within_windows_bytes == (2 * 10 + 100) * each
    assert cache(Outline(spec, DIMS, 50), 5).within_windows_bytes == 3 * each * 5


def test_convolutions_keep_their_last_inputs():
    """Canon layers reach three positions back: A and C over the stream, B over queries, keys and values, D over both
    halves of the MLP."""
    found = cache(Outline(BackboneSpec(canon_at="ABCD"), DIMS, 50), 100)
    assert found.constant_bytes == 3 * 3 * (32 + (4 + 2 * 2) * 8 + 32 + 2 * 48) * 2
    assert found.total_bytes == 100 * found.per_token_bytes + found.constant_bytes


@pytest.mark.parametrize("spec", [BackboneSpec(), BackboneSpec(canon_at="ABCD")], ids=["plain", "Canon"])
def test_it_is_what_the_cache_allocates(spec):
    """After a text of 12 positions in a cache for as many, on real tensors of 4 bytes."""
    kept, tokens = Cache(12), torch.randint(50, (1, 12))
    with torch.no_grad():
        Backbone(spec, DIMS, 50)(tokens, Context(Visibility.rows(tokens), kept))
    buffers = [buffer for buffer in vars(kept)["_buffers"].values() if buffer.is_floating_point()]
    assert sum(buffer.nbytes for buffer in buffers) == 2 * cache(Outline(spec, DIMS, 50), 12).total_bytes


def test_depth_multiplies():
    shallow, deep = (cache(Outline(BackboneSpec(), dataclasses.replace(DIMS, n_layers=n), 50), 7) for n in (1, 9))
    assert deep.total_bytes == 9 * shallow.total_bytes


def test_a_canvas_grows_with_the_text_and_not_with_the_depth():
    short, long = (canvas(Outline(BackboneSpec(), DIMS, 50), positions) for positions in (64, 128))
    assert 64 * 50 * 2 < short < long < 4 * short
    deep = dataclasses.replace(DIMS, n_layers=9)
    assert canvas(Outline(BackboneSpec(), deep, 50), 64) == short
