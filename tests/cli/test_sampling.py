"""`generate` with every sampler: options by short name, errors of one line, the canvas as it fills in, counts."""

import json
from pathlib import Path

import pytest
import torch

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.checkpoint import RECORD, checkpoint_name, make_record, write
from lit_small_lm.cli import watching
from lit_small_lm.cli.report import sample
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.discovery import discover
from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Sampler, known
from lit_small_lm.samplers.autoregressive import Autoregressive
from lit_small_lm.samplers.fitting import goes_with
from lit_small_lm.samplers.low_confidence import LowConfidence
from lit_small_lm.samplers.remasking import Remasking
from lit_small_lm.shapes import FixedShape

discover()
OBJECTIVES = {
    "next": NextToken(),
    "masked": MaskedDiffusion(),
    "block": BlockDiffusion(logits_at="before"),
    "joint": JointDiffusion(),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: folder of an untrained model of each objective}, with one Canon layer and the tokenizer of bytes."""
    root = tmp_path_factory.mktemp("runs")
    backbone, shape, tokenizer = BackboneSpec(canon_at="A"), FixedShape(dim=16, n_layers=1, n_heads=2), Bytes()
    encoder = tokenizer.learn(iter(()))
    torch.manual_seed(0)
    net = Backbone(backbone, shape.resolve(), encoder.specials.vocab_size)
    for name, objective in OBJECTIVES.items():
        parts = {"backbone": backbone, "shape": shape, "objective": objective}
        record = make_record(**parts, tokenizer=tokenizer, encoder=encoder, step=0)
        (root / name / "checkpoints").mkdir(parents=True)
        weights = {f"net.{key}": value for key, value in net.state_dict().items()}
        write({"state_dict": weights, RECORD: record}, root / name / "checkpoints" / checkpoint_name(0))
    return {name: str(root / name) for name in OBJECTIVES}


@pytest.fixture
def generated(capsys):
    """`generated(run, *options)` -> the JSON object that `generate` prints."""

    def generate(run, *options):
        assert main(["generate", run, "--prompt", "ab", "--max_new_tokens", "9", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return generate


def pairs():
    for name, objective in OBJECTIVES.items():
        for sampler, cls in known(Sampler).items():
            if cls.__module__.startswith("lit_small_lm.samplers"):
                yield name, sampler, goes_with(cls, objective.decoding())


@pytest.mark.parametrize(("objective", "sampler", "goes"), list(pairs()))
def test_every_sampler_with_every_objective(runs, generated, capsys, objective, sampler, goes):
    if goes:
        record = generated(runs[objective], "--sampler", sampler)
        assert record["sampler"]["class_path"].endswith(f".{sampler}")
        assert record["sampler"]["init_args"]["temperature"] == 0.8
        assert 1 <= record["tokens"] <= 9
        assert record["nfe"] <= 64 if sampler == "Remasking" else record["nfe"] <= 9
        assert record["tokens_per_evaluation"] == round(record["tokens"] / record["nfe"], 3)
        return
    assert main(["generate", runs[objective], "--sampler", sampler]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and sampler in error[0] and type(OBJECTIVES[objective]).__name__ in error[0]


def test_the_list_of_pairs_has_both_kinds():
    found = [goes for _, _, goes in pairs()]
    assert found.count(True) > 15 and found.count(False) > 10


def test_without_a_sampler_the_objective_says_how(runs, generated):
    assert generated(runs["block"])["sampler"]["class_path"].endswith("LowConfidence")
    assert generated(runs["next"])["sampler"]["class_path"].endswith("Autoregressive")


def test_options_of_a_sampler_reach_it(runs, generated):
    options = ("--sampler=LowConfidence", "--sampler.tokens", "4", "--sampler.by=margin", "--top_k", "7")
    record = generated(runs["masked"], *options)
    assert record["sampler"]["init_args"] | {"tokens": 4, "by": "margin", "top_k": 7} == record["sampler"]["init_args"]
    assert record["nfe"] == 3 and record["tokens_per_evaluation"] == 3.0
    assert generated(runs["masked"], "--sampler.temperature", "0")["sampler"]["init_args"]["temperature"] == 0
    noise = generated(
        runs["block"], "--sampler", "Ancestral", "--sampler.noise", "PolynomialNoise", "--sampler.noise.power", "3"
    )
    assert noise["sampler"]["init_args"]["noise"]["init_args"] == {"power": 3.0}


def test_options_may_stand_before_the_run(runs, capsys):
    assert (
        main(["generate", "--sampler", "FirstHitting", "--sampler.top_k", "3", runs["masked"], "--max_new_tokens", "3"])
        == 0
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--sampler", "LowConfidnce"], "did you mean LowConfidence?"),
        (["--sampler", "LowConfidence", "--sampler.token", "2"], "did you mean --sampler.tokens?"),
        (["--sampler.tokens", "0"], "--sampler.tokens: 0; allowed: a whole number, at least 1"),
        (["--sampler.tokens", "two"], "--sampler.tokens: 'two'"),
        (["--sampler.tokens"], "--sampler.tokens: no value"),
        (["--top_k", "3", "--sampler.top_k", "2"], "--top_k: --sampler.top_k was given, too"),
        (["--json", "--watch"], "not allowed with"),
        (["--suffix", "x", "--sampler", "Autoregressive"], "Autoregressive"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(runs, argv, says, capsys):
    assert main(["generate", runs["masked"], *argv]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and says in error[0]


def test_guidance_and_blocks_do_not_go_together(runs, capsys):
    assert main(["generate", runs["block"], "--sampler.guidance", "1"]) == 2
    assert "guidance" in capsys.readouterr().err


def test_a_suffix_is_reached_by_filling_what_lies_before_it(runs, generated, capsys):
    record = generated(runs["masked"], "--suffix", "yz")
    assert record["text"].endswith("yz")
    assert record["tokens"] == record["nfe"] == 9
    assert main(["generate", runs["next"], "--suffix", "yz"]) == 2
    assert "left to right" in capsys.readouterr().err


def test_help_of_a_sampler_lists_its_options(runs, capsys):
    assert main(["generate", runs["masked"], "--sampler", "EntropyBound", "--sampler.help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("EntropyBound: Fills")
    assert any(line.startswith("  --sampler.bound  ") and "default 0.1" in line for line in lines)


def test_frames_are_lines_where_there_is_no_terminal(runs, capsys):
    options = ["--prompt", "ab", "--max_new_tokens", "6", "--sampler", "LowConfidence"]
    assert main(["generate", runs["masked"], *options, "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert lines[0].count(watching.OPEN) == 5 and watching.OPEN not in lines[-1]
    assert all(line[7:9] == "ab" for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_text_gives_no_orders(terminal, runs, capsys, monkeypatch):
    """Elsewhere it is what was drawn."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    prompt = "a\x1b]0;title\x07\x1b[2J\x9b1m\rb\tc\nd \u200d"
    assert main(["generate", runs["next"], "--prompt", prompt, "--max_new_tokens", "1"]) == 0
    said = "a\\x1b]0;title\\x07\\x1b[2J\\x9b1m\\rb\tc\nd \u200d"
    assert capsys.readouterr().out.startswith(said if terminal else prompt)


def test_what_is_drawn_gives_no_orders_either(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    drawn = ""
    for seed in ("0", "1"):
        options = ["--max_new_tokens", "400", "--temperature", "9", "--seed", seed]
        assert main(["generate", runs["next"], *options]) == 0
        drawn += capsys.readouterr().out
    assert "\\x" in drawn and all(c in "\n\t" or not c < " " for c in drawn)


def test_on_a_terminal_the_canvas_is_drawn_in_place(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: __import__("os").terminal_size((4, 4)))
    assert main(["generate", runs["masked"], "--prompt", "abcdef", "--max_new_tokens", "6", "--watch"]) == 0
    frames = capsys.readouterr().out.split("\x1b[3F\x1b[J")
    assert len(frames) == 6
    for number, frame in enumerate(frames, 1):
        heading, *text = frame.splitlines()
        assert heading == f"{number} evaluations"
        assert len(text) == 2 and max(map(len, text)) <= 4


def test_pieces_are_final_and_add_up_to_the_text(runs):
    model = load(runs["masked"])
    for sampler in (LowConfidence(tokens=2), Remasking(steps=4)):
        *_, last = model.frames("ab", 30, sampler, 3)
        pieces = list(model.generate("ab", 30, sampler, 3))
        new = last.tokens[0, 3:].tolist()
        end = model.encoder.specials.end
        text = model.encoder.decode(new[: new.index(end)] if end in new else new)
        assert "".join(pieces) == text.rstrip("\ufffd")
        assert all(pieces)
    assert len(list(model.generate("ab", 30, Remasking(steps=4)))) == 1, "what may be masked again was shown"
    assert len(list(model.generate("ab", 30, LowConfidence()))) > 1


def test_a_model_refuses_a_sampler_that_does_not_go_with_its_objective(runs):
    with pytest.raises(RequestError, match="Autoregressive needs a causal network; MaskedDiffusion trains a bidirec"):
        load(runs["masked"]).generate("ab", 3, Autoregressive())


def test_a_loaded_model_lies_as_it_did_after_drawing(runs):
    """It may be trained on, or saved where every tensor has to be contiguous."""
    for run in runs.values():
        model = load(run)
        assert list(model.generate("ab", 3))
        assert all(parameter.is_contiguous() for parameter in model.net.parameters())


def test_the_sample_of_a_run_compiles_nothing(runs):
    compiled, model = [], load(runs["next"])
    model.net.compile(backend=lambda graph, inputs: compiled.append(graph) or graph)
    assert sample(model, Path(runs["next"])).startswith("def ")
    assert not compiled
