"""Every YAML that ships is used: families and shapes are built together, whole runs are trained for two steps."""

from functools import cache
from pathlib import Path

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.discovery import discover
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Shape

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = sorted((CONFIGS / "families").glob("*.yaml"))
SCHEMES = sorted(CONFIGS.glob("studies/*/schemes/*.yaml"))
SHAPES = sorted((CONFIGS / "shapes").glob("*.yaml"))
DATA = sorted((CONFIGS / "data").glob("*.yaml"))
RUNS = sorted(set(CONFIGS.rglob("*.yaml")) - set(FAMILIES) - set(SCHEMES) - set(SHAPES) - set(DATA))
ALONE = [run for run in RUNS if not run.stem.startswith(("convert_", "dhara_70m_", "responses_"))]
"""Runs that are run here; recipes of conversion are in test_conversion_yaml.py, those that fine-tune on pairs in
test_finetune_yaml.py."""
SHORT = [
    "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "2", "--trainer.max_steps", "2",
    "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
]  # fmt: skip


def fit(argv, text, run_dir):
    return main(["fit", *argv, *SHORT, "--data.source.path", str(text), "--run_dir", str(run_dir)])


@cache
def record(part, file):
    """A family or a shape as the command line reads it."""
    discover()
    argv = ["--model", "AutoregressiveLM", f"--model.{part}", str(file)]
    return check_request(argv, roots()).tree["model"]["init_args"][part]


@pytest.mark.filterwarnings("ignore:.*LayerNormScaling with")  # a study measures what the scheme advises against
@pytest.mark.parametrize("family", FAMILIES + SCHEMES, ids=lambda path: path.stem)
def test_family_trains_on_a_tiny_shape(family, tmp_path, tiny_text):
    spec = BackboneSpec.from_dict(record("backbone", family))
    kinds = spec.first + spec.pattern
    depth = max(2, *(kinds.index(name) + 1 for name in kinds))  # every kind of layer occurs
    shape = ["--model.shape.dim", "16", "--model.shape.n_layers", str(depth), "--model.shape.n_heads", "2"]
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(family), *shape]
    assert fit(argv, tiny_text, tmp_path / "run") == 0
    assert read(checkpoints_in(tmp_path / "run")[0])["lit_small_lm"]["step"] == 2


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.stem)
def test_every_shape_goes_with_every_family(family, shape):
    spec, dims = BackboneSpec.from_dict(record("backbone", family)), Shape.from_dict(record("shape", shape)).resolve()
    outline = Outline(spec, dims, vocab_size=50304)  # one layer of each kind is built
    assert sum(group.count for group in outline.groups) == dims.n_layers
    assert size(outline).non_embedding > 2 * dims.n_layers * dims.dim**2  # at least two square maps a layer


@pytest.mark.slow
@pytest.mark.parametrize("config", ALONE, ids=lambda path: path.stem)
def test_run_trains_for_two_steps(config, tmp_path, tiny_text):
    assert fit(["-c", str(config)], tiny_text, tmp_path / "run") == 0


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_a_run_opens_with_command_time_and_result(config):
    header = [line for line in config.read_text().splitlines() if line.startswith("# ")]
    for field in ("command:", "time:", "result:"):
        (line,) = [line for line in header if field in line]
        assert field == "command:" or any(letter.isdigit() for letter in line)
