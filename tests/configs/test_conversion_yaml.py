"""Recipes of conversion: the large ones are built without storage and worked out, their small twins run, shortened."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.checkpoint import checkpoints_in, load, read
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.data.datamodule import rows_of_a_step
from lit_small_lm.data.plan import Pace
from lit_small_lm.discovery import discover
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Objective, Shape
from lit_small_lm.training.callbacks.conversion import WSDConversion
from lit_small_lm.training.callbacks.mask_noise import MaskNoise
from lit_small_lm.training.diffusion import DiffusionLM

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
CONVERSIONS = ["dhara_70m_convert", "dhara_70m_convert_mini", "convert_wsd"]


@cache
def tree(name):
    """A configuration as the command line reads it."""
    discover()
    return check_request(["-c", str(FOLDER / f"{name}.yaml")], roots()).tree


def module(name):
    model = tree(name)["model"]["init_args"]
    backbone, shape = BackboneSpec.from_dict(model["backbone"]), Shape.from_dict(model["shape"])
    return DiffusionLM(backbone, shape, Objective.from_dict(model["objective"]))


def pace(name):
    data = tree(name)["data"]
    return Pace(rows_of_a_step(data["seq_len"], data["batch_size"], data.get("batch_tokens")), data["seq_len"])


def steps(name):
    whole = tree(name)
    return pace(name).steps_of_tokens(whole["max_tokens"]) if "max_tokens" in whole else whole["trainer"]["max_steps"]


@pytest.mark.parametrize("name", ["dhara_70m_ar", "dhara_70m_convert"])
def test_the_founding_model_has_the_published_size(name):
    model = tree(name)["model"]["init_args"]
    backbone, dims = BackboneSpec.from_dict(model["backbone"]), Shape.from_dict(model["shape"]).resolve()
    assert size(Outline(backbone, dims, vocab_size=50304)).total == 71_344_512


@pytest.mark.parametrize("name", CONVERSIONS)
def test_phases_fit_the_run(name):
    """Everything is checked but the text: parts, objective, budgets, rows."""
    callbacks = {entry["class_path"].rpartition(".")[2]: entry for entry in tree(name)["trainer"]["callbacks"]}
    conversion = WSDConversion(**callbacks["WSDConversion"]["init_args"])
    trainer = SimpleNamespace(max_steps=steps(name), datamodule=SimpleNamespace(pace=pace(name)))
    conversion.setup(trainer, module(name), "fit")
    assert conversion.blocks[:5] == (1, 4, 32, 64, None)
    assert conversion.block_size(steps(name) - 1) == module(name).objective.block_size
    noise = MaskNoise(**callbacks["MaskNoise"]["init_args"])
    assert noise.deviation(0, steps(name)) == noise.std and noise.deviation(steps(name) - 1, steps(name)) == 0


@pytest.mark.parametrize("suffix", ["", "_mini"])
def test_a_conversion_takes_a_tenth_of_the_tokens_of_the_same_model_and_data(suffix):
    before, after = tree(f"dhara_70m_ar{suffix}"), tree(f"dhara_70m_convert{suffix}")
    for part in ("backbone", "shape"):
        assert before["model"]["init_args"][part] == after["model"]["init_args"][part]
    assert before["data"] == after["data"]
    length = "max_tokens" if not suffix else "max_steps"
    first, second = (run if not suffix else run["trainer"] for run in (before, after))
    assert first[length] == 10 * second[length]


def test_the_large_recipe_trains_on_the_founding_mix():
    mix = check_request(
        ["--model", "AutoregressiveLM", "--data", str(FOLDER.parent / "data/founding_mix.yaml")], roots()
    )
    assert tree("dhara_70m_ar")["data"]["source"] == mix.tree["data"]["source"]


SHORT = [
    "--data.batch_size", "2", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu",
    "--trainer.precision", "32-true", "--trainer.val_check_interval", "20", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.mark.slow
def test_the_small_twins_run_one_after_the_other(tmp_path, tiny_text):
    def fit(name, steps, *more):
        run = tmp_path / name
        argv = ["-c", str(FOLDER / f"{name}.yaml"), *SHORT, "--data.source.path", str(tiny_text), *more]
        assert main(["fit", *argv, "--trainer.max_steps", str(steps), "--run_dir", str(run)]) == 0
        assert read(checkpoints_in(run)[0])["lit_small_lm"]["step"] == steps
        return run

    start = fit("dhara_70m_ar_mini", 2)
    twin = fit("dhara_70m_convert_mini", 20, "--init_from", str(start))
    assert load(twin).objective == BlockDiffusion(block_size=129, estimator="count", logits_at="before")
    general = fit("convert_wsd", 20, "--init_from", str(start), "--data.seq_len", "64")
    assert load(general).net.spec.canon_at == "AC"  # the family of the run that it starts from
    assert load(general).objective.block_size == 32
