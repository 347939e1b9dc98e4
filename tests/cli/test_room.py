"""A warning before a run where memory or disk will not suffice: once, with figures, and never more than that."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.cli import checks, room
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.planning import rehearsal
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.workload import Workload
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.lit import AutoregressiveLM
from lit_small_lm.training.optim import AdamW

CONFIGS = Path(__file__).parents[2] / "configs"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def warned(fit):
    """`warned("--optim.lr", "1")` makes a short run; its warnings about room."""

    def run(*argv):
        done = fit(*argv)
        assert done.status == 0, done.lines
        return [line for line in done.lines if line.startswith("warning: ") and "free" in line]

    return run


def test_nothing_is_said_where_there_is_room(warned):
    assert warned() == []


def test_memory_that_will_not_suffice(warned, monkeypatch):
    monkeypatch.setattr(checks, "free_memory", lambda: 10_000)
    [line] = warned()
    assert line.startswith("warning: training will take about ") and "10.00 kB (9.77 KiB) are free" in line
    assert "data.micro_batch_size" in line


def test_several_processes_share_the_memory_of_a_machine(monkeypatch, tiny_text, tmp_path, capsys):
    config = {"trainer": {"devices": 4, "num_nodes": 2, "accelerator": "cpu", "precision": "32-true"}}
    said = {}
    for free in (0, 10**12):
        monkeypatch.setattr(checks, "free_memory", lambda free=free: free)
        room.warn(module(), data(tiny_text, tmp_path), of(config), tmp_path)
        said[free] = capsys.readouterr().err
    assert "on each of 4 processes" in said[0] and said[10**12] == ""


def test_a_gpu_s_memory_is_its_own(monkeypatch, tiny_text, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5_000_000, 10**9), raising=False)
    config = {"trainer": {"devices": 1, "num_nodes": 1, "accelerator": "cuda", "precision": "bf16-mixed"}}
    room.warn(module(n_layers=8, dim=256), data(tiny_text, tmp_path), of(config), tmp_path)
    assert "5.00 MB (4.77 MiB) are free" in capsys.readouterr().err


def test_disk_that_will_not_suffice(warned, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 10**12 - 5000, 5000))
    lines = warned()
    assert 1 <= len(lines) <= 2  # one for each place
    assert any("checkpoints about " in line for line in lines) and all(
        "5.00 kB (4.88 KiB) are free" in line for line in lines
    )
    assert any("the token store, if it is not there yet, about " in line for line in lines)


def test_an_estimate_that_fails_stops_nothing(warned, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(checks, "free_memory", lambda: 0)
    monkeypatch.setattr(room, "training", broken)
    assert warned() == []


def test_only_a_fit_is_warned_of(fit, monkeypatch, capsys):
    assert fit("--run_dir", "run").status == 0
    monkeypatch.setattr(checks, "free_memory", lambda: 0)
    assert main(["test", "--run_dir", "run"]) == 0
    assert "are free" not in capsys.readouterr().err


def test_depth_costs_nothing(tiny_text, tmp_path, monkeypatch):
    """Two steps are rehearsed, of one layer and of two, however many there are."""
    depths, step = [], rehearsal.step

    def counted(build, workload):
        depths.append(len(build().layers))
        return step(build, workload)

    monkeypatch.setattr(rehearsal, "step", counted)
    monkeypatch.setattr(checks, "free_memory", lambda: 0)
    room.warn(module(n_layers=500), data(tiny_text, tmp_path), of({}), tmp_path)
    assert depths == [1, 2]


def test_a_run_that_needs_little_is_not_worked_out(tiny_text, tmp_path, monkeypatch, capsys):
    def never(*args):
        raise AssertionError

    monkeypatch.setattr(room, "_worked_out", never)
    assert list(room._shortages(module(), data(tiny_text, tmp_path), of({}), tmp_path)) == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "lfm2"])
def test_the_bound_is_above_what_is_worked_out(family):
    spec = BackboneSpec.from_dict(family_named(family))
    outline = Outline(spec, FixedShape(dim=16, n_layers=3, n_heads=2).resolve(), 260)
    for workload in (Workload(optim=AdamW(), seq_len=64, batch_size=4, rows=4), EVERYTHING):
        bound, found = room._bound(outline, workload), room._worked_out(outline, workload)
        assert all(more >= less for more, less in zip(bound, found, strict=True)), (bound, found)


EVERYTHING = Workload(optim=AdamW(), objective=MaskedDiffusion(), seq_len=16, batch_size=1, rows=1, average="ema")


def family_named(name):
    argv = ["--model", "AutoregressiveLM", "--model.backbone", str(CONFIGS / "families" / f"{name}.yaml")]
    return check_request(argv, roots()).tree["model"]["init_args"]["backbone"]


def module(**shape):
    return AutoregressiveLM(shape=FixedShape(**{"dim": 16, "n_layers": 1, "n_heads": 2, **shape}))


def data(text, folder):
    return TokenData(source=TextFiles(path=str(text)), tokenizer=Bytes(), cache_dir=str(folder / "cache"))


def of(config):
    """A configuration of what room looks at, as YAML."""
    trainer = {"devices": 1, "num_nodes": 1, "accelerator": "cpu", "precision": "32-true", "max_steps": 10}
    tree = {"data": {"tokenizer": Bytes().to_dict(), "seq_len": 16, "batch_size": 16}, **config}
    return yaml.safe_dump({**tree, "trainer": {**trainer, **config.get("trainer", {})}})
