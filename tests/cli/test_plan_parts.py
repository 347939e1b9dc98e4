"""`plan` on a family or a shape by itself, which is planned in the plainest model."""

import json
from pathlib import Path

from lit_small_lm.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILY, SHAPE = str(CONFIGS / "families" / "llama.yaml"), str(CONFIGS / "shapes" / "32x384.yaml")


def total(capsys, *argv):
    assert main(["plan", *argv, "--vocab_size", "50304", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["parameters"]["total"]


def test_family_and_shape_go_in_either_place(capsys):
    found = [total(capsys, FAMILY, "--model.shape", SHAPE), total(capsys, SHAPE, "--model.backbone", FAMILY)]
    assert found == [71_246_208, 71_246_208]


def test_a_shape_by_itself_takes_the_family_that_is_the_default(capsys):
    assert total(capsys, SHAPE) == 71_246_208  # Llama's layer


def test_a_yaml_of_another_part_is_named_with_its_line(tmp_path, capsys):
    file = tmp_path / "norm.yaml"
    file.write_text("class_path: RMSNorm\n")
    assert main(["plan", str(file)]) == 2
    assert "norm.yaml:1: class_path: 'class_path' is not an option" in capsys.readouterr().err
