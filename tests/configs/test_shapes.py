"""The shapes that ship have exactly the parameters of the public models they are named after, and say so."""

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from lit_small_lm.backbone import BackboneSpec, size_of
from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.discovery import discover
from lit_small_lm.plugin import Dims, Shape

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = sorted((CONFIGS / "shapes").glob("*.yaml"))
PUBLIC = {
    "gpt2-124m": ("gpt2", 50257, 124_439_808),
    "gpt2-355m": ("gpt2", 50257, 354_823_168),
    "gpt2-774m": ("gpt2", 50257, 774_030_080),
    "gpt2-1558m": ("gpt2", 50257, 1_557_611_200),
    "study-4x768": ("gpt2", 50257, 67_736_832),
    "study-12x512": ("gpt2", 50257, 64_085_504),
    "study-16x448": ("gpt2", 50257, 61_603_136),
    "study-24x384": ("gpt2", 50257, 62_279_808),
    "study-32x384": ("gpt2", 50257, 76_475_520),
    "study-48x320": ("gpt2", 50257, 75_592_640),
    "study-64x256": ("gpt2", 50257, 63_673_088),
    "32x384": ("llama", 50304, 71_246_208),
    "smollm2-135m": ("llama", 49152, 134_515_008),
    "mobilellm-125m": ("llama", 32000, 124_635_456),
    "llama-3.2-1b": ("llama", 128256, 1_235_814_400),
    "qwen3-0.6b": ("qwen3", 151936, 596_049_920),
    "gemma3-270m": ("gemma3", 262144, 268_098_176),
    "pythia-70m": ("neox", 50304, 70_426_624),
    "lfm2-350m": ("lfm2", 65536, 354_483_968),
}
"""Family, vocabulary and parameters of the public models, those of transformers' classes of the same configurations."""
COUNT = re.compile(r"# ([\d,]+) parameters with (\w+)\.yaml and ([\d,]+) ids[.;]")


@cache
def dims_of(name: str) -> Dims:
    discover()
    argv = ["--model", "AutoregressiveLM", "--model.shape", str(CONFIGS / "shapes" / f"{name}.yaml")]
    return Shape.from_dict(check_request(argv, roots()).tree["model"]["init_args"]["shape"]).resolve()


@cache
def family(name: str) -> BackboneSpec:
    discover()
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(CONFIGS / "families" / f"{name}.yaml")]
    return BackboneSpec.from_dict(check_request(argv, roots()).tree["model"]["init_args"]["backbone"])


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_of_the_public_model(name):
    spec, vocab_size, total = PUBLIC[name]
    assert size_of(family(spec), dims_of(name), vocab_size).total == total


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_what_a_header_says_is_so(shape):
    total, spec, vocab_size = COUNT.search(shape.read_text()).groups()
    found = size_of(family(spec), dims_of(shape.stem), int(vocab_size.replace(",", "")))
    assert f"{found.total:,}" == total


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_a_name_that_gives_depth_and_width_gives_the_right_ones(shape):
    named, dims = re.search(r"(\d+)x(\d+)$", shape.stem), dims_of(shape.stem)
    assert named is None or (dims.n_layers, dims.dim) == tuple(map(int, named.groups()))
    args = yaml_tree.data(yaml_tree.read_file(shape))["init_args"]
    assert dims.n_heads * dims.head_dim == dims.dim or "head_dim" in args


def test_what_canon_layers_add_to_dhara():
    """The published 71.34M and 249.2M, of the latter 638,976 in Canon layers, D spanning the product of gate and up."""
    llama, dhara = family("llama"), family("dhara")
    assert size_of(dhara, dims_of("32x384"), 50304).total == 71_344_512 == PUBLIC["32x384"][2] + 98_304
    layer = dataclasses.replace(dhara.layer, ffn=dataclasses.replace(dhara.layer.ffn, canon_span="hidden"))
    large, dims = dataclasses.replace(dhara, canon_at="ABCD", layer=layer), dims_of("dhara-250m")
    total, plain = (size_of(spec, dims, 49152).total for spec in (large, llama))
    assert (total, total - plain) == (249_201_408, 638_976)
