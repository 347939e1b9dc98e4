"""Plug-ins that cannot be loaded, built or trusted are named; those that work are not in their way."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.discovery import PluginWarning
from lit_small_lm.durable import manifest_of
from lit_small_lm.errors import RunError, place_of

HEAD = """
import random
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from lit_small_lm.plugin import FFN, Linear, Norm
"""
FFN_PLUGIN = (
    HEAD
    + '''
@dataclass(frozen=True, kw_only=True)
class {name}(FFN):
    """An FFN for a test."""
    def build(self, site):
        return Map(site.dim)

class Map(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = Linear(dim, dim, role="down")
    def forward(self, h, ctx):
        y = self.proj(h)
        return {result}
'''
)
NORM_PLUGIN = HEAD + (
    "@dataclass(frozen=True, kw_only=True)\nclass BadFlat(Norm):\n    '''Loses the channels.'''\n"
    "    def build(self, dim):\n        return Flat()\n\n"
    "class Flat(nn.Module):\n    def forward(self, h):\n        return h.mean(-1)\n"
)
ABSTRACT = HEAD + "@dataclass(frozen=True, kw_only=True)\nclass BadHalf(FFN):\n    '''Forgot something.'''\n"
NOT_FROZEN = HEAD + "@dataclass\nclass BadThawed(FFN):\n    def build(self, site):\n        return nn.Identity()\n"


LAYER = "--model.backbone.layer."


def plugin(name, source, argv, *says, status=2):
    argv = ["--plugins", f"{name}.py", *argv, "--run_dir", "run"]
    return {"argv": argv, "says": says, "files": {f"{name}.py": source}, "status": status}


def ffn(name, result, *says, status=1):
    source = FFN_PLUGIN.format(name=name, result=result)
    return plugin(f"{name.lower()}_file", source, [LAYER + "ffn", name], *says, status=status)


PLUGINS = {
    "E04 raises": plugin(
        "bad_e04",
        "x = 1\nraise ValueError('no\\ngood')",
        [],
        "plug-in bad_e04.py was not loaded: ValueError in ",
        "bad_e04.py:2: no\\ngood",
    ),
    "E04 syntax": plugin("bad_e04s", "def f(:\n", [], "SyntaxError in ", "bad_e04s.py:1: "),
    "E04 leaves": plugin("bad_e04x", "import sys; sys.exit(0)", [], "SystemExit in ", "bad_e04x.py:1"),
    "E04 bytes": plugin("bad_e04b", b"x = '\xff'", [], "SyntaxError in ", "bad_e04b.py:1"),
    "E04 missing import": plugin(
        "bad_e04m", "import no_such_module_here", [], "ModuleNotFoundError in ", "bad_e04m.py:1"
    ),
    "not frozen": plugin("bad_thawed", NOT_FROZEN, [], "bad_thawed.py:8: cannot inherit non-frozen"),
    "abstract": plugin("bad_abstract", ABSTRACT, [LAYER + "ffn", "BadHalf"], "'BadHalf' is abstract; it lacks build"),
    "E06 another kind": {"argv": ["--optim", "RMSNorm"], "says": ["--optim: ", "'RMSNorm' is a Norm, not Optim"]},
    "E06 an objective for an FFN": {
        "argv": [LAYER + "ffn", "NextToken"],
        "says": ["'NextToken' is an Objective, not FFN"],
    },
    "E08 shape": ffn(
        "BadNarrow",
        "y[..., :3]",
        "plug-in BadNarrow (",
        "badnarrow_file.py): returned (1, 4, 3) float32; expected (1, 4, 16) float32",
    ),
    "E08 dtype": ffn(
        "BadDouble", "y.double()", "BadDouble", "returned (1, 4, 16) float64; expected (1, 4, 16) float32"
    ),
    "E08 no tensor": ffn("BadTuple", "(y, y)", "BadTuple", "returned tuple; expected (1, 4, 16) float32"),
    "E08 a norm": plugin(
        "bad_flat",
        NORM_PLUGIN,
        ["--model.backbone.norm.norm", "BadFlat"],
        "PreNorm with BadFlat (",
        "bad_flat.py): returned (1, 4) float32; expected (1, 4, 16)",
        status=1,
    ),
    "raises when built": plugin(
        "bad_build",
        FFN_PLUGIN.format(name="BadBuild", result="y").replace("return Map(site.dim)", "raise KeyError('what')"),
        [LAYER + "ffn", "BadBuild"],
        "'what' (KeyError in ",
        "bad_build.py:",
    ),
    "E10": plugin(
        "bad_e10",
        "LIT_SMALL_LM_PLUGIN_API = 99\nraise ValueError",
        [],
        "written for plug-in interface 99; this is interface 1",
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_broken_plugin_is_named(name, meets):
    meets(PLUGINS[name])


def test_a_plugin_of_a_folder_hurts_only_who_needs_it(fit, write):
    write({"d/bad_folder.py": "raise ValueError('no good')"})
    said = r"plug-in d/bad_folder.py was not loaded: ValueError in .*bad_folder.py:1: no good"
    with pytest.warns(PluginWarning, match=said):
        assert fit("--plugins", "d", "--run_dir", "run").status == 0
    with pytest.warns(PluginWarning, match=said):
        assert main(["generate", "run", "--plugins", "d", "--max_new_tokens", "2"]) == 0
    with pytest.warns(PluginWarning):
        status, lines = fit("--plugins", "d", LAYER + "ffn", "OfFolder")
    assert status == 2 and re.match(f"error: --plugins: {said}", lines[-1])
    assert "'OfFolder' is not a known FFN" in lines[-2]


def test_a_part_that_needs_values_is_tried_by_the_first_step(fit, write):
    good = ffn("NeedsValues", "y * (1 + 0 * int(y.isfinite().all().item()))")
    write(good["files"])
    assert fit(*good["argv"]).status == 0


def test_a_mistake_in_a_plugin_is_shown_to_its_author(fit, write):
    bad = ffn("Dividing", "y / 0 if h.shape[1] < 16 else 1 / 0")
    write(bad["files"])
    status, lines = fit(*bad["argv"])
    assert status == 1 and lines[-1].startswith("error: ZeroDivisionError in ") and "dividing_file.py:" in lines[-1]
    assert "Traceback" in "\n".join(lines)


def test_a_plugin_of_this_interface_says_so(fit, write):
    source = "LIT_SMALL_LM_PLUGIN_API = 1\n" + FFN_PLUGIN.format(name="OfThisVersion", result="y")
    good = plugin("of_this_version", source, [LAYER + "ffn", "OfThisVersion"])
    write(good["files"])
    assert fit(*good["argv"]).status == 0


@pytest.mark.slow
def test_a_run_resumes_exactly_whatever_a_plugin_does_to_the_generators(fit, write):
    noise = "torch.rand_like(y) * random.random() + float(np.random.rand())"
    turn = "torch.manual_seed(random.randrange(2**31)) and np.random.seed(random.randrange(2**31))"
    good = ffn("Restless", f"(y + {noise}, {turn})[0]")
    write(good["files"])
    argv = [*good["argv"], "--trainer.val_check_interval", "3"]
    assert fit(*argv).status == 0
    shutil.copytree("run", "killed")
    (newest,) = [path for path in checkpoints_in(Path("killed")) if "4" in path.name]
    newest.unlink()
    manifest_of(newest).unlink()
    assert main(["fit", "--run_dir", "killed", "--resume", *good["argv"][:2]]) == 0
    whole, resumed = (read(checkpoints_in(Path(run))[0])["state_dict"] for run in ("run", "killed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [re.findall(r'"val/loss": [^,}]+', (Path(run) / "metrics.jsonl").read_text()) for run in ("run", "killed")]
    assert losses[0] == losses[1] != []


def test_the_place_of_an_error_is_in_the_code_of_the_one_who_made_it():
    with pytest.raises(ValueError) as caught:
        Path("\0").stat()
    assert place_of(caught.value).startswith(f"{__file__}:")
    assert place_of(RunError("never raised")) == "unknown"
