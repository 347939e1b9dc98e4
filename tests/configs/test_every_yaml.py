"""Every YAML that ships is used: families and shapes are built together, whole runs are trained for two steps."""

from pathlib import Path

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.discovery import discover
from lit_small_lm.plugin import Shape

CONFIGS = Path(__file__).parents[2] / "configs"
FAMILIES = sorted((CONFIGS / "families").glob("*.yaml"))
SHAPES = sorted((CONFIGS / "shapes").glob("*.yaml"))
DATA = sorted((CONFIGS / "data").glob("*.yaml"))
RUNS = sorted(set(CONFIGS.rglob("*.yaml")) - set(FAMILIES) - set(SHAPES) - set(DATA))
SHORT = [
    "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "2", "--trainer.max_steps", "2",
    "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
]  # fmt: skip


def fit(argv, text, run_dir):
    return main(["fit", *argv, *SHORT, "--data.source.path", str(text), "--run_dir", str(run_dir)])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.stem)
def test_family_trains_on_a_tiny_shape(family, tmp_path, tiny_text):
    shape = ["--model.shape.dim", "16", "--model.shape.n_layers", "2", "--model.shape.n_heads", "2"]
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(family), *shape]
    assert fit(argv, tiny_text, tmp_path / "run") == 0
    assert read(checkpoints_in(tmp_path / "run")[0])["lit_small_lm"]["step"] == 2


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.stem)
def test_every_shape_goes_with_every_family(family, shape):
    discover()
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(family), "--model.shape", str(shape)]
    model = check_request(argv, roots()).tree["model"]["init_args"]
    dims = Shape.from_dict(model["shape"]).resolve()
    with torch.device("meta"):
        net = Backbone(BackboneSpec.from_dict(model["backbone"]), dims, vocab_size=50304)
    assert len(net.layers) == dims.n_layers
    if (family.stem, shape.stem) == ("llama", "32x384"):
        assert sum(p.numel() for p in net.parameters()) == 71_246_208  # transformers' LlamaForCausalLM of this shape


@pytest.mark.slow
@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_run_trains_for_two_steps(config, tmp_path, tiny_text):
    assert fit(["-c", str(config)], tiny_text, tmp_path / "run") == 0


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_a_run_opens_with_command_time_and_result(config):
    header = [line for line in config.read_text().splitlines() if line.startswith("# ")]
    for field in ("command:", "time:", "result:"):
        (line,) = [line for line in header if field in line]
        assert field == "command:" or any(letter.isdigit() for letter in line)
