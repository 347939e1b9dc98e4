"""DiffusionLM on the command line: figures are named for what they are, and noise depends on nothing but counters."""

import json
import math

import pytest
import torch

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.errors import RequestError
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.training.diffusion import DiffusionLM, DrawnNLL
from lit_small_lm.training.lit import AutoregressiveLM
from lit_small_lm.training.score import METRICS, DocumentNLL

BLOCKS = ["--model", "DiffusionLM", "--model.objective", "BlockDiffusion", "--model.objective.block_size", "4"]
JOINT = ["--model", "DiffusionLM", "--model.objective", "JointDiffusion"]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Run directories of a fit and a test of each objective."""
    folder = tmp_path_factory.mktemp("diffusion")
    for name, model in {"blocks": BLOCKS, "joint": JOINT, "masked": ["--model", "DiffusionLM"]}.items():
        assert main(["fit", *tiny, *model, "--trainer.max_steps", "4", "--run_dir", str(folder / name)]) == 0
        assert main(["test", "--run_dir", str(folder / name)]) == 0
    return folder


def results(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "test.json").read_text()), lines


@pytest.mark.parametrize("name", ["blocks", "masked"])
def test_every_figure_of_a_bound_says_so(runs, name):
    test, lines = results(runs / name)
    assert test["likelihood"] == "upper" and test["draws"] == 4
    scores = next(line for line in lines if "val/loss_bound" in line)
    assert 0 < test["nats_per_token_bound"] < 8 and test["bits_per_byte_bound_standard_error"] > 0
    assert 0 < test["nats_per_token_draw_error"] < 0.5
    for record in (test, scores):
        assert [key for key in record if key.endswith(("loss", "bits_per_byte", "nats_per_token"))] == []
    assert test["nats_per_token_bound"] * test["tokens"] / math.log(2) == pytest.approx(
        test["bits_per_byte_bound"] * test["bytes"]
    )


def test_a_joint_model_has_an_exact_likelihood_beside_the_bound(runs):
    test, lines = results(runs / "joint")
    for figure in ("nats_per_token", "bits_per_byte"):
        assert test[figure] != test[f"{figure}_bound"] and test[figure] > 0
    assert {"val/loss", "val/loss_bound"} <= set(next(line for line in lines if "val/loss" in line))


@pytest.mark.slow
def test_the_same_tokens_are_counted_as_by_next_token_prediction(runs, tiny, tmp_path):
    assert main(["fit", *tiny, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "ar")]) == 0
    assert main(["test", "--run_dir", str(tmp_path / "ar")]) == 0
    wanted, _ = results(tmp_path / "ar")
    for name in ("blocks", "joint", "masked"):
        test, _ = results(runs / name)
        assert {key: test[key] for key in ("documents", "tokens", "bytes")} == {
            key: wanted[key] for key in ("documents", "tokens", "bytes")
        }


def test_lines_on_the_terminal_name_the_bound_and_its_draws(runs, capsys):
    assert main(["validate", "--run_dir", str(runs / "joint"), "--draws", "2"]) == 0
    said = capsys.readouterr().err
    assert "nats per token (upper bound of the likelihood's bits, 2 draws, blocks of 4; " in said
    assert "nats per token (exact likelihood; " in said


@pytest.mark.parametrize("name", ["blocks", "joint", "masked"])
def test_a_checkpoint_is_loaded_and_decoded_as_it_was_trained(runs, name):
    model = load(runs / name)
    kind = {"blocks": BlockDiffusion(block_size=4), "joint": JointDiffusion(), "masked": MaskedDiffusion()}[name]
    assert model.objective == kind
    pieces = [list(model.generate("ab", 9, seed=seed)) for seed in (1, 1, 2)]
    assert pieces[0] == pieces[1]
    assert "<|mask|>" not in "".join(pieces[2])


@pytest.mark.slow
def test_accumulated_batches_have_the_noise_of_one_batch(tiny, tmp_path, lines):
    argv = ["fit", *tiny, *BLOCKS, "--model.objective.average", "tokens", "--trainer.max_steps", "3"]
    for name, extra in {"one": [], "two": ["--data.micro_batch_size", "2"]}.items():
        assert main([*argv, *extra, "--run_dir", str(tmp_path / name)]) == 0
    one, two = (lines(tmp_path / name).pairs("train/loss") for name in ("one", "two"))
    assert [step for step, _ in one] == [1, 2, 3]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- refused
def test_rows_need_one_position_more_than_they_have_targets(tiny, tmp_path, capsys):
    positions = ["--model.backbone.positions", "Learned", "--model.backbone.positions.length", "16"]
    assert main(["fit", *tiny, "--model", "DiffusionLM", *positions, "--run_dir", str(tmp_path / "run")]) == 2
    assert "data.seq_len: 16; model.backbone.positions has 16 positions" in capsys.readouterr().err


def test_an_objective_of_another_kind_is_refused(tiny, capsys):
    assert main(["fit", *tiny, "--model", "DiffusionLM", "--model.objective", "NextToken"]) == 2
    assert "NextToken" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the figures
def test_figures_are_those_that_are_logged():
    for objective in (MaskedDiffusion(), JointDiffusion(), BlockDiffusion(block_size=1)):
        module = DiffusionLM(objective=objective)
        meter = module.meter(3, None, {})
        ones = torch.ones(meter.draws, 1, 2)
        meter.update(ones, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2))
        if meter.exact is not None:
            meter.exact.update(ones[0], torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2))
        assert set(module.figures()) == set(meter.compute())
    assert set(METRICS) <= set(DiffusionLM(objective=BlockDiffusion(block_size=1)).figures())
    assert AutoregressiveLM().figures() == list(METRICS)


def test_draws_are_averaged_document_by_document():
    nll, docs = torch.rand(3, 2, 5), torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, 2, 0]])
    counted, size = torch.rand(2, 5) < 0.8, torch.randint(1, 4, (2, 5))
    meter, mean = DrawnNLL(4, None, {"part": range(0, 2)}, "upper", 3), DocumentNLL(4)
    meter.update(nll, docs, counted, size)
    mean.update(nll.mean(0), docs, counted, size)
    found, wanted = meter.compute(), mean.compute()
    assert found["loss_bound"] == pytest.approx(wanted["loss"].item())
    assert found["bits_per_byte_bound_standard_error"] == pytest.approx(wanted["bits_per_byte_standard_error"].item())
    assert "part/loss_bound" in found and "loss" not in found
    rates = (nll * counted).sum((1, 2)) / counted.sum()
    assert found["loss_draw_error"] == pytest.approx(rates.std().item() / math.sqrt(3), rel=1e-5)


def test_blocks_of_one_need_one_draw():
    assert DiffusionLM(objective=BlockDiffusion(block_size=1)).meter(2, None, {}).draws == 1


def test_a_mask_that_is_another_token_too_is_refused():
    from lit_small_lm.objectives.denoising import mask_of
    from lit_small_lm.plugin import Specials

    with pytest.raises(RequestError, match="its mask is its end token"):
        mask_of(Specials(9, end=3, pad=1, mask=3), "MaskedDiffusion")
    with pytest.raises(RequestError, match="the tokenizer has no mask token; allowed: "):
        mask_of(Specials(9, end=3, pad=1, mask=None), "MaskedDiffusion")


# ------------------------------------------------------------------------------------------------------ the mask rates
SEARCH = "ClippedNoiseSearch"


@pytest.mark.slow
def test_mask_rates_are_looked_for_and_go_with_the_checkpoint(tiny, tmp_path, lines):
    """A run that is stopped and resumed trains on the rates that the run without a stop trains on."""
    argv = ["fit", *tiny, *BLOCKS, "--trainer.callbacks", SEARCH, "--trainer.val_check_interval", "2"]
    argv = [*argv, "--trainer.max_steps", "6", "--checkpoints.every_n_steps", "1"]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    found = load(tmp_path / "whole").objective.noise
    assert type(found).__name__ == "ClippedNoise" and found.high - found.low >= 0.5 - 1e-9
    folder = tmp_path / "whole" / "checkpoints"
    for step in (4, 5, 6):
        for suffix in ("", ".sha256"):
            (folder / f"step={step:08d}.ckpt{suffix}").unlink()
    before = lines(tmp_path / "whole").pairs("train/loss")
    assert main(["fit", "--run_dir", str(tmp_path / "whole"), "--resume"]) == 0
    assert lines(tmp_path / "whole").pairs("train/loss") == before
    assert load(tmp_path / "whole").objective.noise == found


def test_a_search_without_a_schedule_is_refused(tiny, tmp_path, capsys):
    counting = [*BLOCKS, "--model.objective.estimator", "count"]
    assert main(["fit", *tiny, *counting, "--trainer.callbacks", SEARCH, "--run_dir", str(tmp_path / "run")]) == 2
    assert 'estimator is "count", which uses no noise schedule' in capsys.readouterr().err
