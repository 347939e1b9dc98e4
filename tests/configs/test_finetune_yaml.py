"""Recipes of fine-tuning on prompts and responses, on the pairs that the example writes."""

import json
import runpy
from pathlib import Path

import pytest

from lit_small_lm.__main__ import main

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "finetune").glob("*.yaml"))
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [[], ["--model", "AutoregressiveLM"]], ids=["as it is", "autoregressive"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_for_two_steps(recipe, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "05_responses.py"))["main"](rows=200)
    assert main(["fit", "-c", str(recipe), *model, *SHORT, "--run_dir", "run"]) == 0
    lines = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    figures = next(line for line in lines if "val/tokens" in line)
    assert figures["val/tokens"] == figures["val/bytes"] + figures["val/documents"] > 0, (
        "letters of responses, and ends"
    )
