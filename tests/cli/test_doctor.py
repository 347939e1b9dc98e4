"""`doctor`: what it says of this machine, of a broken one, and its exit status."""

import builtins
import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.cli import checks
from lit_small_lm.cli.checks import Finding, Scope, findings
from lit_small_lm.cli.report import choose_precision


def by_name(found):
    return {finding.name: finding for finding in found}


def test_it_says_that_training_is_possible_here_and_how(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "training is possible here" in said.splitlines()[-1]
    assert f"precision {choose_precision('auto', None)[0]}" in said.splitlines()[-1]
    assert f"torch {torch.__version__}" in said
    starts = {line[11:15] for line in said.splitlines() if line.startswith(("device", "compile", "machine"))}
    assert starts <= {"ok  ", "warn", "no  "}  # the marks stand in one column, inside it


def test_json_holds_every_finding(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["training"] == "possible"
    topics = {check["topic"] for check in found["checks"]}
    assert topics == {"version", "device", "precision", "compile", "strategy", "machine", "hub", "plug-in"}
    assert all(set(check) == {"topic", "name", "state", "what", "cure"} for check in found["checks"])
    assert all(check["cure"] for check in found["checks"] if check["state"] in ("warning", "stop"))


def test_a_missing_requirement_stops_and_names_its_cure(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(name):
        if name == "tokenizers":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.6.2" if name == "lightning" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    found = by_name(checks.versions(Scope()))
    assert (found["tokenizers"].state, found["tokenizers"].what) == ("stop", "not installed")
    assert found["tokenizers"].cure.startswith("pip install 'tokenizers>=")
    assert found["lightning"].state == "warning"
    assert main(["doctor"]) == 1
    assert "training is not possible here: tokenizers: not installed" in capsys.readouterr().out.splitlines()[-1]


def test_it_does_not_crash_where_torch_is_missing(monkeypatch, capsys):
    original = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = list(findings(Scope()))
    monkeypatch.undo()
    stops = [finding for finding in found if finding.state == "stop"]
    assert any("No module named 'torch'" in finding.what and "pip install" in finding.cure for finding in stops)
    assert {"machine", "hub"} <= {finding.topic for finding in found}


def test_precision_names_what_auto_takes_and_why_not_the_others(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        found = by_name(checks.precisions(Scope()))
        assert "taken unless asked otherwise" in found["bf16-mixed" if able else "32-true"].what
        assert found["bf16-mixed"].state == ("ok" if able else "warning")
        assert found["16-mixed"].state == "no"


def test_no_compiler_is_said_with_its_cure(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = by_name(checks.compilers(Scope()))
    assert found["C++"].state == "no"
    assert "install g++" in found["C++"].cure


def test_a_compiler_that_fails_is_a_finding(monkeypatch):
    def broken(function):
        raise RuntimeError("no luck\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    found = by_name(checks.compilers(Scope(full=True)))
    assert (found["torch.compile"].state, "RuntimeError: no luck" in found["torch.compile"].what) == ("no", True)


@pytest.mark.slow
def test_full_compiles_and_opens_a_process_group(monkeypatch):
    assert by_name(checks.compilers(Scope(full=True)))["torch.compile"].state in ("ok", "no")
    found = by_name(checks.strategies(Scope(full=True)))
    assert found["nccl" if torch.cuda.is_available() else "gloo"].state == "ok"
    assert not torch.distributed.is_initialized()


def test_hidden_gpus_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = by_name(checks.devices(Scope()))
    assert found["cuda"] == Finding(
        "device", "cuda", "no", "CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES"
    )


def test_little_room_is_a_warning(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    assert checks.folder("runs", tmp_path / "not" / "yet", 0, "").state == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 * 2**30, 99 * 2**30, 2**30))
    found = checks.folder("runs", tmp_path / "not" / "yet", 5, "make room")
    assert (found.state, found.cure) == ("warning", "make room")
    assert "1.0 GiB free" in found.what
    (tmp_path / "file").touch()
    assert "is a file" in checks.folder("runs", tmp_path / "file" / "below", 0, "elsewhere").what


def test_offline_variables_are_named_and_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(checks.urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("the network was used"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in by_name(checks.hub(Scope(full=True)))["offline"].what
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert by_name(checks.hub(Scope()))["network"].state == "ok"
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert by_name(checks.hub(Scope(full=True)))["network"].state == "no"


def test_a_hub_out_of_reach_is_no_failure(monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(checks.urllib.request, "urlopen", refused)
    found = by_name(checks.hub(Scope(full=True)))["network"]
    assert (found.state, "no route to host" in found.what, found.cure != "") == ("no", True, True)


def test_a_broken_plug_in_is_named(tmp_path, capsys):
    (tmp_path / "bad_part.py").write_text("import not_there_at_all\n")
    assert main(["doctor", "--plugins", str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "bad_part" in line)
    assert "warn" in line
    assert "not_there_at_all" in line
    assert main(["doctor", "--plugins", str(tmp_path / "none")]) == 2
    assert "--plugins" in capsys.readouterr().err
    assert not Path("runs").is_file()
