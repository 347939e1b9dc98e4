"""A released model: taken wherever a run is, equal to its checkpoint, and refused by name when a byte was changed."""

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.digests import SUMS, write_sums
from lit_small_lm.release import OWN

TEN = torch.arange(20).view(2, 10)


@pytest.fixture(scope="module")
def released(two_layers, tmp_path_factory):
    """A release, its run beside it."""
    folder = tmp_path_factory.mktemp("released")
    shutil.copytree(two_layers, folder / "run")
    assert main(["export", str(folder / "run"), str(folder / "out"), "--to", "release"]) == 0
    return folder


@pytest.fixture
def out(released, tmp_path, monkeypatch, capsys):
    """A copy of it in the working directory."""
    shutil.copytree(released, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return Path("out")


def test_logits_are_the_checkpoints_bit_for_bit(out):
    run, release = load("run"), load("out")
    assert torch.equal(run.logits(TEN), release.logits(TEN))
    assert run.encoder.record() == release.encoder.record() and run.objective == release.objective
    assert release.record["step"] == run.record["step"] and release.record["likelihood"] == "exact"


def test_half_precision_is_asked_for_and_stated(out, capsys):
    assert main(["export", "run", "half", "--to", "release", "--dtype", "bfloat16"]) == 0
    assert "half: LitSmallLMForCausalLM, bfloat16; largest difference of a logit" in capsys.readouterr().out
    assert json.loads(Path("half/config.json").read_text())["dtype"] == "bfloat16"
    state, found = load("run").net.state_dict(), load("half").net.state_dict()
    assert all(torch.equal(found[name], tensor.bfloat16().float()) for name, tensor in state.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in state.items())


def test_nothing_of_the_authors_machine_is_in_it(out, released):
    sums = subprocess.run(["sha256sum", "-c", SUMS], cwd=out, capture_output=True, text=True)
    assert sums.returncode == 0 and sums.stdout.count(": OK") == 6
    config = (out / "config.json").read_text()
    assert not re.search(r'"[/~][^"]', config) and str(released.parent.parent) not in config
    assert not {"environment", "command", "platform", "path"} & set(re.findall(r'"(\w+)": "', config))


def test_every_command_takes_it(out, tiny, capsys):
    source = tiny[tiny.index("--data.source.path") :]
    assert main(["generate", "out", "--prompt", "the", "--max_new_tokens", "3", "--json"]) == 0
    assert main(["test", "--run_dir", "out", *source]) == 0
    assert main(["test", "--run_dir", "run", *source]) == 0
    first, second = (json.loads(Path(name, "test.json").read_text()) for name in ("out", "run"))
    assert first["nats_per_token"] == second["nats_per_token"]
    assert main(["export", "out", "again", "--to", "release"]) == 0
    assert all((out / file.name).read_bytes() == file.read_bytes() for file in Path("again").iterdir())
    assert main(["import", "out", "imported"]) == 0
    assert torch.equal(load("imported").logits(TEN), load("out").logits(TEN))
    capsys.readouterr()
    argv = ["fit", *tiny, "--model.shape.n_layers", "2", "--trainer.max_steps", "1", "--init_from", "out"]
    assert main([*argv, "--run_dir", "more"]) == 0


def test_training_does_not_go_on_from_it(out, refused):
    refused(
        ["fit", "--run_dir", "out", "--resume"], "holds no optimizer state and no position in the data; --init_from"
    )
    refused(["fit", "--branch_from", "out"], "holds no optimizer state")


@pytest.mark.parametrize("command", [["generate", "out"], ["import", "out", "new"]])
def test_a_changed_byte_is_named(out, refused, command):
    for file in sorted(out.iterdir()):
        whole = file.read_bytes()
        if file.name != SUMS:
            file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
            refused(command, f"{file.name} was changed or is damaged", status=1)
            file.write_bytes(whole)


def test_what_is_missing_or_came_later_is_named(out, refused):
    (out / "model.safetensors").rename("x")
    refused(["generate", "out"], "out/model.safetensors is missing; SHA256SUMS names it", status=1)
    Path("x").rename(out / "model.safetensors")
    write_sums(out, ["config.json", "tokenizer_record.json"])
    refused(["generate", "out"], "out/model.safetensors is not in SHA256SUMS", status=1)
    (out / SUMS).write_text("../run/config.yaml\n")
    refused(["generate", "out"], "SHA256SUMS:1: no digest and name", status=1)
    (out / SUMS).write_text(f"{'0' * 64}  ../run/config.yaml\n")
    refused(["generate", "out"], "is no name of a file in it")
    (out / SUMS).unlink()
    refused(["generate", "out"], "SHA256SUMS is missing", status=1)


def edited(out, **changes):
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, OWN: {**config[OWN], **changes}}))
    write_sums(out, [file.name for file in out.iterdir() if file.name != SUMS])


def shape(**changes):
    widths = {"dim": 16, "n_layers": 2, "n_heads": 2, **changes}
    return {"class_path": "lit_small_lm.shapes.FixedShape", "init_args": widths}


@pytest.mark.parametrize(
    ("changes", "says", "status"),
    [
        ({"shape": shape(dim=2**20)}, "tensor net.close.weight: shape (16,) in the file", 1),
        ({"shape": shape(n_layers=10_000)}, "10,000 layers, but it has", 1),
        ({"shape": shape(n_layers=10**30)}, "n_layers: ", 2),
        ({"shape": shape(dim=10**400)}, "dim: ", 2),
        ({"shape": shape(dim=-1)}, "dim: -1", 2),
        ({"plugins": 3}, "its record is damaged (TypeError", 1),
        ({"config": functools.reduce(lambda inner, _: [inner], range(400), "deep")}, "its record is damaged (Rec", 1),
        ({"format": 99}, "format 99", 2),
        ({"plugins": [{"name": "Far", "class_path": "far.Far", "source": "file far.py"}]}, "it needs plug-in Far", 2),
    ],
)
def test_a_config_of_another_network_takes_no_memory(out, refused, monkeypatch, changes, says, status):
    monkeypatch.setattr("lit_small_lm.release.Stored.__getitem__", lambda *_: pytest.fail("a tensor was read"))
    edited(out, **changes)
    refused(["generate", "out"], says, status=status)


def test_weights_that_are_not_finite_are_named(out, refused):
    state = load_file(out / "model.safetensors")
    save_file({**state, "net.embed.weight": state["net.embed.weight"] * torch.inf}, out / "model.safetensors")
    edited(out)
    refused(["generate", "out"], "net.embed.weight holds numbers not finite", status=1)


def test_no_escape_of_a_terminal_gets_through(out, refused):
    edited(out, plugins=[{"name": "\x1b[2Jx\u202e", "class_path": "a.B", "source": "\x1b]0;y\x07"}])
    refused(["generate", "out"], "it needs plug-in \\x1b[2Jx\\u202e (\\x1b]0;y\\x07)")
