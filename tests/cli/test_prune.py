"""`lit-small-lm prune`: runs with fewer layers or weights, which every other command takes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.analysis.surgery import running
from lit_small_lm.backbone import Kept
from lit_small_lm.checkpoint import load
from lit_small_lm.context import Context, Visibility

IDS = torch.arange(3, 13).view(1, 10)
FEW = ("--rows", "4")
SCALED = ("--model.backbone.norm", "LayerNormScaling", "--model.shape.n_layers", "4")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run of four layers under LayerNorm Scaling, made once."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", *tiny, *SCALED, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, work_on):
    """A copy of it in the working folder, called "run"."""
    work_on(trained)


def logits(net):
    with torch.no_grad():
        return net(IDS, Context(Visibility.rows(IDS)))


def without(*gone):
    whole = load("run").net
    with running(whole, [layer for index, layer in enumerate(whole.layers) if index not in gone]):
        return logits(whole)


def test_layers_that_are_named(run, capsys):
    assert main(["prune", "run", "--layers", "0,2", "--out", "small", *FEW]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "run: without layers 0, 2" and said[1].startswith("loss ") and said[-1] == "small"
    model = load("small")
    assert torch.equal(logits(model.net), without(0, 2))
    assert model.net.spec.kept == Kept(layers=(1, 3), depth=4) and model.net.dims.n_layers == 2
    assert [layer.mixer_path.factor for layer in model.net.layers] == pytest.approx([2**-0.5, 0.5])
    assert model.record["pruned"]["layers"] == [0, 2] and model.record["step"] == load("run").record["step"]
    assert {file.name for file in Path("small").iterdir()} == {
        "checkpoints", "config.yaml", "environment.json", "pruned.json", "tokenizer.json",
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["removal", "greedy", "influence", "angular"])
def test_layers_that_are_chosen(run, capsys, metric):
    assert main(["prune", "run", "--keep", "3", "--by", metric, "--json", "--out", "small", *FEW]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == metric and len(found["layers"]) == 1 and found["out"] == "small"
    assert torch.equal(logits(load("small").net), without(*found["layers"]))


PROGRESS = {
    "layers": (["--keep", "2", "--by", "greedy"], "choosing by greedy: about 0:0", "greedy"),
    "weights": (["--sparsity", "0.5"], "4 sparsities of 4 layers: about 0:0", "sparsity"),
}


@pytest.mark.parametrize("case", PROGRESS)
def test_what_takes_long_says_how_far_it_is(run, capsys, monkeypatch, case):
    argv, said, name = PROGRESS[case]
    monkeypatch.setattr("lit_small_lm.cli.announcing.LONG", 0.0)
    assert main(["prune", "run", *argv, *FEW]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(said) and "fewer --rows" in first and rest == [name]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["prune", "run", *argv, *FEW]) == 0
    line, *after = capsys.readouterr().err.split("\n")[1:]
    assert line.rstrip().endswith(f"{name} 100 %") and line.count("\r") > 4 and after == [""]


@pytest.mark.slow
def test_every_command_takes_a_pruned_run(run, capsys, tiny):
    assert main(["prune", "run", "--layers", "0", "--out", "small", *FEW]) == 0
    loss = capsys.readouterr().out
    assert main(["generate", "small", "--max_new_tokens", "3", "--seed", "1"]) == 0
    assert main(["test", "--run_dir", "small"]) == 0
    assert main(["analyze", "small", "--only", "removal", "--json", *FEW]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["model"]["places"] == [1, 2, 3] and found["model"]["whole"] == 4
    assert f"-> {found['loss']['value']:.4f} nats" in loss
    more = ["--init_from", "small", "--run_dir", "more", "--trainer.max_steps", "1", "--optim.lr", "1e-9"]
    assert main(["fit", "-c", "small/config.yaml", *more]) == 0
    torch.testing.assert_close(logits(load("more").net), without(0), rtol=1e-5, atol=1e-5)
    assert main(["prune", "small", "--layers", "1", "--out", "smaller", *FEW]) == 0
    assert torch.equal(logits(load("smaller").net), without(0, 2))
    assert load("smaller").record["pruned"]["before"]["layers"] == [0]
    assert main(["export", "smaller", "public", "--to", "hf", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["architecture"] == "LlamaForCausalLM" and said["difference"] < 1e-5 and said["transformers"] < 1e-4


@pytest.mark.slow
def test_a_pruned_run_that_no_public_class_has(fit, capsys):
    scheme = ("--model.backbone.norm", "DeepNorm", "--model.shape.n_layers", "4")
    assert fit(*scheme, "--run_dir", "run").status == 0
    assert main(["prune", "run", "--layers", "1", "--out", "small", *FEW]) == 0
    assert main(["export", "small", "public", "--to", "hf", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["architecture"] == "LitSmallLMForCausalLM" and said["difference"] == 0
    assert main(["import", "public", "back"]) == 0
    assert torch.equal(logits(load("back").net), without(1))


def test_a_text_that_is_gone_is_no_reason_to_keep_layers(run, capsys, monkeypatch, tmp_path):
    assert main(["prune", "run", "--layers", "1", "--out", "small", *FEW]) == 0
    capsys.readouterr()
    monkeypatch.setattr("lit_small_lm.data.datamodule.TokenData.setup", gone)
    assert main(["prune", "run", "--layers", "1", "--out", "again"]) == 0
    assert "loss not measured: no text" in capsys.readouterr().out
    assert torch.equal(logits(load("again").net), logits(load("small").net))
    assert main(["prune", "run", "--keep", "1", "--out", "third"]) == 2


def gone(*_):
    from lit_small_lm.errors import RequestError

    raise RequestError("no text")


def test_small_weights(run, capsys):
    argv = ["prune", "run", "--sparsity", "0.4", "--by_depth", "increasing", "--out", "sparse", "--json", *FEW]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["zeros"] == pytest.approx(0.4, abs=0.005) and found["shares"] == sorted(found["shares"])
    assert len(found["alone"]["rise"]) == 4 and len(found["whole"]["rise"]) == 4
    before, after = load("run").net, load("sparse").net
    for layer, own, share in zip(after.layers, before.layers, found["shares"], strict=True):
        weight, was = layer.ffn.down_proj.weight, own.ffn.down_proj.weight
        assert (weight == 0).double().mean() == pytest.approx(share, abs=0.005)
        assert torch.equal(weight[weight != 0], was[weight != 0])
    assert after.spec == before.spec and torch.equal(after.embed.weight, before.embed.weight)


def test_two_of_four_and_the_table(run, capsys):
    assert main(["prune", "run", "--sparsity", "0.5", "--pattern", "2:4", *FEW]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "50.0 %" in said[0] and "(2:4, uniform)" in said[0]
    assert [line.split()[:2] for line in said[3:7]] == [["layer", str(index)] for index in range(4)]
    assert {str(path) for path in Path().iterdir()} == {"run"}  # nothing is written unless asked


BAD = {
    "nothing to do": (["run"], "give one of --layers, --keep and --sparsity"),
    "two things to do": (["run", "--layers", "1", "--keep", "2"], "--layers and --keep exclude each other"),
    "no such layer": (["run", "--layers", "1,4"], "--layers: 4; allowed: within 0 to 3"),
    "all layers": (["run", "--layers", "0-3"], "leaves none of 4"),
    "no list": (["run", "--layers", "one"], "layers and ranges such as 3,5-7"),
    "an empty list": (["run", "--layers", ""], "layers and ranges"),
    "keep all": (["run", "--keep", "4"], "--keep: 4; allowed: 1 to 3"),
    "keep none": (["run", "--keep", "0"], "--keep: 0"),
    "a metric without keep": (["run", "--layers", "1", "--by", "removal"], "--by: goes with --keep"),
    "2:4 of another share": (["run", "--sparsity", "0.4", "--pattern", "2:4"], "give 0.5"),
    "2:4 by depth": (["run", "--sparsity", "0.5", "--pattern", "2:4", "--by_depth", "measured"], "same everywhere"),
    "a depth without sparsity": (["run", "--keep", "2", "--by_depth", "uniform"], "goes with --sparsity"),
    "a folder that is used": (["run", "--layers", "1", "--out", "run"], "not empty"),
    "an option of fit": (["run", "--layers", "1", "--optim.lr", "1"], "optim.lr"),
    "nothing there": (["nowhere", "--layers", "1"], "nowhere"),
    "no such text": (["run", "--layers", "1", "--out", "x", "--data.source.path", "none"], "none does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(run, refused, case):
    argv, said = BAD[case]
    refused(["prune", *argv], said)
