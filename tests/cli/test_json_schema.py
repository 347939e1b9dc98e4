"""The schema for editors: right configurations pass, wrong ones are pointed at, and plug-ins are in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from lit_small_lm.__main__ import main
from lit_small_lm.cli import yaml_tree
from lit_small_lm.cli.json_schema import schema_of
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import kinds, known
from lit_small_lm.spec import class_path

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {"families": "BackboneSpec", "schemes": "BackboneSpec", "shapes": "Shape", "data": "TokenData"}
AUTOREGRESSIVE = "lit_small_lm.training.lit.AutoregressiveLM"
FFN = '''
from dataclasses import dataclass
from lit_small_lm.nn.mlp import MLP
from lit_small_lm.plugin import FFN, setting

@dataclass(frozen=True, kw_only=True)
class SchemaFFN(FFN):
    """A gate of its own. More of it."""
    depth: int = setting(3, low=1, high=9, unit="layers")
    """How deep it goes. And why."""
    def build(self, site):
        return MLP().build(site)
'''


@pytest.fixture(scope="module", autouse=True)
def whole() -> dict[str, Any]:
    """The schema of a whole configuration; every plug-in that comes with the package is known."""
    discover()
    return schema_of(roots())


def plain(text: str) -> Any:
    return yaml_tree.data(yaml_tree.compose(text))


def fault(schema: dict[str, Any], value: Any) -> str:
    """Where an editor would point, and what it would say; nothing if the value is right."""
    error = best_match(Draft202012Validator(schema).iter_errors(value))
    return f"{'.'.join(map(str, error.absolute_path))}: {error.message}" if error else ""


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_file_is_right(file):
    schema = schema_of(roots(), KINDS.get(file.parent.name))
    Draft202012Validator.check_schema(schema)
    assert fault(schema, yaml_tree.data(yaml_tree.read_file(file))) == ""


@pytest.mark.parametrize(
    "text",
    [
        "model: AutoregressiveLM",
        "model: {class_path: AutoregressiveLM, init_args: {backbone: families/llama.yaml, shape: {dim: 64}}}",
        f"model: {{class_path: {AUTOREGRESSIVE}, init_args: {{shape: {{n_kv_heads: null}}}}}}",
        "model: {class_path: AutoregressiveLM, init_args: {backbone: {more_layers: {local: {mixer: ShortConv}}}}}",
        "optim: {lr: 1e-3}",
        "optim: {init_args: {lr: 1e-3}}",
        "optim: optim/fast.yaml",
        "trainer: {callbacks: LearningRateMonitor, strategy: ddp, logger: false, max_time: '00:01:00:00'}",
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}, Timer], precision: 16}",
        "config: [a.yaml, b.yaml]",
        "lit_small_lm: 0.1.0\nschedule: {warmup: 0.1, decay_shape: cosine}",
    ],
)
def test_what_the_checker_takes_is_right(whole, text):
    assert fault(whole, plain(text)) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer: {max_stepz: 3}", "trainer: Additional properties are not allowed ('max_stepz' was unexpected)"),
        ("trainer: {max_steps: x}", "trainer.max_steps: 'x' is not of type 'integer'"),
        ("trainer: {max_steps: -5}", "trainer.max_steps: -5 is less than the minimum of -1"),
        ("trainer: {precision: bf17}", "trainer.precision: 'bf17' is not one of ["),
        (
            "trainer: {callbacks: [{class_path: Timer, init_args: {verbose: x}}]}",
            "init_args.verbose: 'x' is not of type",
        ),
        ("optim: {class_path: AdamX}", "optim.class_path: 'AdamX' is not valid"),
        ("optim: {class_path: AdamW, init_args: {lr: -1}}", "optim.init_args.lr: -1 is less than or equal to"),
        ("optim: {class_path: AdamW, lr: 1}", "optim: Additional properties are not allowed ('lr' was unexpected)"),
        ("optim: AdamX", "optim: 'AdamX' "),
        ("model: {class_path: AutoregressiveLM, init_args: {backbone: {norm: PreNor}}}", "backbone.norm: 'PreNor' "),
        ("seed_everything: true", "seed_everything: True is not of type 'integer'"),
        ("data: 3", "data: 3 is not"),
    ],
)
def test_what_the_checker_refuses_is_pointed_at(whole, text, says):
    assert says in fault(whole, plain(text))
    with pytest.raises(RequestError):
        check_request(["--model", "AutoregressiveLM", *_typed(plain(text))], roots())


def _typed(value: dict[str, Any]) -> list[str]:
    return [f"--{name}={json.dumps(item) if isinstance(item, dict) else item}" for name, item in value.items()]


def test_every_plugin_range_and_text_is_in_it(whole):
    named = json.dumps(whole)
    in_configs = {name.partition(".")[0] for name in whole["$defs"]}
    for kind in (kind for name, kind in kinds().items() if name in in_configs):
        for name, cls in known(kind).items():
            assert f'"const": "{name}"' in named and f'"{class_path(cls)}"' in named
    dim = whole["$defs"]["Shape.FixedShape"]["properties"]["dim"]
    assert dim["description"] == "Width of the residual stream." and dim["default"] == 256
    assert (dim["type"], dim["minimum"]) == ("integer", 1)


def test_the_command_knows_your_plugins_and_single_values(tmp_path, capsys):
    (tmp_path / "for_schema.py").write_text(FFN)
    assert main(["schema", "--plugins", str(tmp_path / "for_schema.py"), "--kind", "BackboneSpec"]) == 0
    schema = json.loads(capsys.readouterr().out)
    option = schema["$defs"]["FFN.SchemaFFN"]["properties"]["depth"]
    assert option["description"] == "How deep it goes." and (option["minimum"], option["maximum"]) == (1, 9)
    assert schema["$defs"]["FFN.SchemaFFN"]["description"] == "A gate of its own."
    layer = "layer: {ffn: {class_path: SchemaFFN, init_args: {depth: %d}}}"
    assert fault(schema, plain(layer % 9)) == ""
    assert "10 is greater than the maximum of 9" in fault(schema, plain(layer % 10))
    assert main(["schema", "--kind", "Bakcbone"]) == 2
    assert "did you mean BackboneSpec?" in capsys.readouterr().err
