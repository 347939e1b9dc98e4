"""A configuration, a checkpoint and a release name classes; none of them makes anything be imported."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, write
from lit_small_lm.digests import SUMS, write_sums
from lit_small_lm.release import OWN, TOKENIZER_RECORD

PLANTED = """from pathlib import Path
Path("it_ran").write_text("")
class Payload:
    def __init__(self, *_, **__):
        Path("it_ran").write_text("")
"""
NAMES = ("planted.Payload", "subprocess.Popen")
SLOTS = (
    "trainer.callbacks", "trainer.logger", "trainer.profiler", "trainer.strategy", "trainer.plugins", "optim", "model",
    "model.backbone", "model.backbone.norm", "model.backbone.layer.mixer", "model.shape", "data.tokenizer",
    "data.source",
)  # fmt: skip
NESTED = {
    "trainer.strategy": ("DDPStrategy", "checkpoint_io"),
    "trainer.callbacks": ("LambdaCallback", "on_fit_start"),
    "trainer.logger": ("CSVLogger", "prefix"),
    "trainer.profiler": ("PyTorchProfiler", "record_functions"),
    "trainer.plugins": ("lightning.pytorch.plugins.MixedPrecision", "scaler"),
}


@pytest.fixture
def planted(fit, monkeypatch):
    """A module in the working directory that Python would find, and that leaves a file when it runs."""
    Path("planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    yield
    assert not Path("it_ran").exists() and "planted" not in sys.modules


def asked(name: str) -> dict:
    return {"class_path": name, "init_args": {"args": ["touch", "it_ran"]}}


def nested(slot: str, value: object) -> dict:
    for key in reversed(slot.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slot", SLOTS)
def test_a_slot_takes_known_classes_only(planted, fit, slot, name):
    Path("c.yaml").write_text(yaml.safe_dump(nested(slot, asked(name))))
    for argv in (["-c", "c.yaml"], [f"--{slot}={name}"], [f"--{slot}", json.dumps(asked(name))]):
        ended = fit(*argv)
        assert ended.status == 2 and ended.lines[-1].startswith("error: "), ended
        assert slot.split(".")[-1] in ended.lines[-1] and len(ended.lines[-1]) <= 300
        assert "known: " in ended.lines[-1] or "allowed: " in ended.lines[-1], ended.lines[-1]


@pytest.mark.parametrize("slot", NESTED)
def test_options_of_lightnings_classes_take_no_others(planted, fit, slot):
    owner, option = NESTED[slot]
    value = {"class_path": owner, "init_args": {option: asked("planted.Payload")}}
    Path("c.yaml").write_text(yaml.safe_dump(nested(slot, [value] if slot == "trainer.callbacks" else value)))
    ended = fit("-c", "c.yaml")
    assert ended.status in (1, 2) and ended.lines[-1].startswith("error: "), ended


def test_a_checkpoint_names_known_classes_only(planted, work_on, two_layers, refused):
    work_on(two_layers)
    (file, *_) = checkpoints_in(Path("run"))
    whole = torch.load(file, weights_only=True)
    record = whole["lit_small_lm"]
    config = {**yaml.safe_load(record["config"])}
    config["trainer"]["callbacks"] = [asked("planted.Payload")]
    for changed in (
        {"config": yaml.safe_dump(config)},
        {"backbone": asked("planted.Payload")},
        {"objective": asked("subprocess.Popen")},
        {"tokenizer": {"spec": asked("planted.Payload"), "record": {}}},
    ):
        write({**whole, "lit_small_lm": {**record, **changed}}, file)
        refused(["test", "--run_dir", "run"] if "config" in changed else ["generate", "run"], "known: ")


def test_a_release_names_known_classes_only(planted, work_on, two_layers, refused):
    work_on(two_layers)
    assert main(["export", "run", "out", "--to", "release"]) == 0
    config = json.loads(Path("out/config.json").read_text())
    for changed in ({"backbone": asked("planted.Payload")}, {"shape": asked("subprocess.Popen")}):
        Path("out/config.json").write_text(json.dumps({**config, OWN: {**config[OWN], **changed}}))
        write_sums(Path("out"), ["config.json", "model.safetensors", TOKENIZER_RECORD])
        refused(["generate", "out"], "known: ")
    assert Path("out", SUMS).exists()


def test_what_lightning_offers_can_be_named(fit):
    names = ("LearningRateMonitor", "ModelSummary", "Timer")
    callbacks = [{"class_path": f"lightning.pytorch.callbacks.{name}"} for name in names]
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    plugins = ["lightning.pytorch.plugins.environments.LightningEnvironment"]
    trainer = {"callbacks": [*callbacks, stop], "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}}
    Path("c.yaml").write_text(yaml.safe_dump({"trainer": {**trainer, "plugins": plugins}}))
    ended = fit("-c", "c.yaml", "--trainer.max_steps", "1", "--run_dir", "run")
    assert ended.status == 0, ended.lines


def test_a_module_is_opened_by_name(fit, monkeypatch, capsys):
    Path("opened_parts.py").write_text(
        "from lightning.pytorch import Callback\nclass Quiet(Callback):\n    'Does nothing.'\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    argv = ["--trainer.callbacks=opened_parts.Quiet", "--trainer.max_steps", "1", "--run_dir", "run"]
    ended = fit(*argv)
    assert ended.status == 2 and "opened_parts" not in sys.modules
    with pytest.warns(UserWarning, match="opened_parts.py was run, and a configuration may name its classes"):
        assert fit(*argv, "--allow_import", "opened_parts").status == 0
    ended = fit(*argv, "--allow_import", "no_such_module")
    assert ended.status == 2 and "--allow_import: plug-in no_such_module was not loaded" in ended.lines[-1]
