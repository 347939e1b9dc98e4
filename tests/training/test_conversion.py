"""From an autoregressive run to a diffusion run: phases of block sizes, step 0, and what is refused."""

import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lit_small_lm import load
from lit_small_lm.__main__ import main
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.cli.lightning_parts import refuse_twice
from lit_small_lm.data.plan import Pace, Warmup
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.positions import Learned
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.training.callbacks.annealing import AttentionAnnealing
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.callbacks.clipped_noise import ClippedNoiseSearch
from lit_small_lm.training.callbacks.conversion import WSDConversion, in_positions, nearest_divisor
from lit_small_lm.training.callbacks.mask_noise import MaskNoise
from lit_small_lm.training.diffusion import DiffusionLM
from lit_small_lm.training.lit import AutoregressiveLM

PHASES = ["--trainer.callbacks", "WSDConversion", "--trainer.callbacks.blocks", "[1,4,null,4]"]
BLOCKS = [
    "--model", "DiffusionLM", "--model.objective", "BlockDiffusion", "--model.objective.logits_at", "before",
    *PHASES, "--trainer.callbacks.shares", "[0.25,0.25,0.25,0.25]",
]  # fmt: skip


def at(steps, objective=BlockDiffusion(block_size=32), pace=Pace(4, 128), **settings):
    """A conversion that knows how long its run is."""
    conversion = WSDConversion(**settings)
    trainer = SimpleNamespace(max_steps=steps, datamodule=SimpleNamespace(pace=pace))
    conversion.setup(trainer, DiffusionLM(objective=objective), "fit")
    return conversion


# -------------------------------------------------------------------------------------------------------- the schedule
def test_phases_grow_stay_and_come_back():
    conversion = at(100)
    assert conversion.starts == [0, 5, 15, 25, 35, 75]
    assert [conversion.block_size(step) for step in (0, 4, 5, 14, 15, 25, 34, 35, 74, 75, 99)] == [
        1, 1, 4, 4, 32, 64, 64, 129, 129, 32, 32
    ]  # fmt: skip


def test_budgets_may_be_tokens_and_follow_a_growing_batch():
    tokens = (512 * 10, 512 * 30)
    assert at(40, blocks=(1, 32), tokens=tokens).starts == [0, 10]
    pace = Pace(8, 128, Warmup(batch_size=6))  # of 6 steps two have 1 row, two 2, two 4, and then all 8
    conversion = at(10, pace=pace, blocks=(1, 32), tokens=(14 * 128, 32 * 128))
    assert conversion.starts == [0, 6]
    assert at(10, pace=pace, blocks=(1, 32), shares=(0.5, 0.5)).starts == [0, 8]  # 30 of 46 rows come before step 8


@pytest.mark.parametrize("objective", [BlockDiffusion(block_size=32), JointDiffusion(block_size=32)])
def test_objectives_of_blocks_change_their_size_and_nothing_else(objective):
    module = DiffusionLM(objective=objective)
    conversion = at(10, objective, blocks=(4, 32), shares=(0.5, 0.5))
    trainer = SimpleNamespace(global_step=2, max_steps=10, progress_bar_callback=None)
    conversion.on_train_batch_start(trainer, module, None, 0)
    assert module.objective == objective.in_blocks(4) != objective
    assert module.held_out == objective and module.noted == {"block_size": 4}
    trainer.global_step = 5
    conversion.on_train_batch_start(trainer, module, None, 0)
    assert module.objective == objective


def test_a_whole_row_is_one_block_and_the_nearest_divisor_is_named():
    assert (in_positions(None, 96), in_positions(96, 96), in_positions(32, 96)) == (97, 97, 32)
    assert (nearest_divisor(64, 96), nearest_divisor(5, 128), nearest_divisor(7, 7)) == (48, 4, 7)


REFUSED = {
    "shares that do not add up": ({"blocks": (1, 32), "shares": (0.5, 0.4)}, "they add up to 0.9; allowed: to 1"),
    "tokens that do not add up": ({"blocks": (1, 32), "tokens": (512, 512)}, "1,024 in all; the run has 5,120 (10 ste"),
    "two kinds of budgets": ({"blocks": (32,), "shares": (1.0,), "tokens": (5120,)}, "give one of the two"),
    "as many budgets as phases": ({"blocks": (1, 32)}, "shares: 6 values for 2 blocks"),
    "no budget at all": ({"blocks": (1, 32), "shares": (1.0, 0.0)}, "shares: 0.0; allowed: above 0"),
    "no step in a phase": ({"blocks": (1, 32), "shares": (0.01, 0.99)}, "phase 1 of 2 has no step in a run of 10"),
    "a block that does not divide": ({"blocks": (5, 32), "shares": (0.5, 0.5)}, "5 does not divide data.seq_len 128; "
                                     "nearest: 4"),
    "no block": ({"blocks": (0, 32), "shares": (0.5, 0.5)}, "blocks: 0; allowed: at least 1, or null"),
    "a whole row as the end": ({"blocks": (1, 128), "shares": (0.5, 0.5)}, "the last is 128, but model.objective."
                               "block_size is 32; allowed: the same, here model.objective.block_size 129, a whole row"),
    "another end": ({"blocks": (1, 4), "shares": (0.5, 0.5)}, "the last is 4, but model.objective.block_size is 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    settings, said = REFUSED[case]
    with pytest.raises(RequestError, match=f"WSDConversion.*{re.escape(said)}"):
        at(10, **settings)


def test_a_phase_whose_filled_rows_are_longer_than_the_positions_is_refused():
    """The last phase fits: 17 positions; blocks of 4 would fill a document of 17 up to 20."""
    objective = BlockDiffusion(block_size=1, filled_to=1)
    trainer = SimpleNamespace(max_steps=10, datamodule=SimpleNamespace(pace=Pace(4, 16)))
    for length, fits in ((20, True), (19, False)):
        model = DiffusionLM(backbone=BackboneSpec(positions=Learned(length=length)), objective=objective)
        model.refuse_length(16)
        conversion = WSDConversion(blocks=(4, 1), shares=(0.5, 0.5))
        with nullcontext() if fits else pytest.raises(RequestError, match="19 positions.*to a multiple of 4"):
            conversion.setup(trainer, model, "fit")


def test_an_empty_list_of_shares_is_no_default():
    with pytest.raises(RequestError, match="shares: 0 values for 6 blocks"):
        WSDConversion(shares=())


def test_objectives_without_blocks_are_refused():
    with pytest.raises(RequestError, match="MaskedDiffusion has no blocks; allowed: BlockDiffusion or JointDiffusion"):
        at(10, MaskedDiffusion(), blocks=(32,), shares=(1.0,))
    trainer = SimpleNamespace(max_steps=10, datamodule=SimpleNamespace(pace=Pace(4, 128)))
    with pytest.raises(RequestError, match="model.objective is NextToken"):
        WSDConversion().setup(trainer, AutoregressiveLM(), "fit")


# -------------------------------------------------------------------------------------------------------------- the run
@pytest.fixture(scope="module")
def autoregressive(tiny, tmp_path_factory):
    """An autoregressive run, and the options of one like it."""
    options = [*tiny, "--model.backbone.canon_at", "AC"]
    run = tmp_path_factory.mktemp("conversion") / "autoregressive"
    assert main(["fit", *options, "--trainer.max_steps", "6", "--run_dir", str(run)]) == 0
    return run, options


@pytest.fixture
def shown(capsys):
    """What `fit` says; the tests of this folder are quiet otherwise."""

    def run(*argv):
        assert main(["fit", *map(str, argv), "--trainer.enable_progress_bar", "true"]) == 0
        return capsys.readouterr().err

    return run


@pytest.fixture
def converted(autoregressive, shown, tmp_path):
    run, options = autoregressive
    argv = [*options, *BLOCKS, "--trainer.val_check_interval", "4", "--init_from", run]
    return tmp_path / "run", shown(*argv, "--run_dir", tmp_path / "run")


def test_a_conversion_from_start_to_end(converted, lines):
    run, said = converted
    found = lines(run)
    assert found.pairs("train/block_size") == [(step, [1, 4, 17, 4][(step - 1) // 3]) for step in range(1, 13)]
    assert {size for _, size in found.pairs("val/block_size")} == {4}  # one bound throughout
    records = [read(file)["lit_small_lm"]["objective"]["init_args"] for file in reversed(checkpoints_in(run))]
    assert [record["block_size"] for record in records] == [1, 4, 17, 4]
    assert load(run).objective == BlockDiffusion(block_size=4, logits_at="before")
    starts = re.findall(r"step (\d+)/12  conversion: phase (\d) of 4, (.+), until step (\d+)", said)
    assert starts == [
        ("0", "1", "blocks of 1", "3"), ("3", "2", "blocks of 4", "6"),
        ("6", "3", "one block a row", "9"), ("9", "4", "blocks of 4", "12"),
    ]  # fmt: skip
    figures = re.search(r"blocks of 1 ([\d.]+) nats per token, autoregressive ([\d.]+), difference (\S+)", said)
    assert figures[1] == figures[2] and abs(float(figures[3])) < 1e-5
    assert "the mask is left out of both softmaxes; autoregressive with it" in said
    assert main(["test", "--run_dir", str(run)]) == 0
    test = json.loads((run / "test.json").read_text())
    assert test["block_size"] == 4 and test["likelihood"] == "upper"


class Crash(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("extra", [[], ["--trainer.accumulate_grad_batches", "2"]], ids=["plain", "accumulated"])
def test_killed_in_mid_phase_and_resumed_equals_uninterrupted(extra, autoregressive, tmp_path, lines, monkeypatch):
    run, options = autoregressive
    noisy = ["--trainer.callbacks+=MaskNoise", "--trainer.callbacks.steps", "0.5", "--checkpoints.every_n_steps", "2"]
    argv = ["fit", *options, *BLOCKS, *noisy, *extra, "--init_from", str(run)]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    original = Checkpoints.on_train_batch_end

    def dying(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 5:  # its last checkpoint is that of step 4, the second of three steps of a phase
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Checkpoints, "on_train_batch_end", dying)
        main([*argv, "--run_dir", str(tmp_path / "killed")])
    assert main(["fit", "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    for key in ("train/loss", "train/grad_norm", "train/block_size", "train/mask_noise", "val/loss_bound", "tokens"):
        assert whole.pairs(key) == resumed.pairs(key) != [], key
    first, second = (read(checkpoints_in(tmp_path / name)[0])["state_dict"] for name in ("whole", "killed"))
    assert all((first[key] == second[key]).all() for key in first)


def test_rows_laid_out_more_widely_weigh_no_less_than_others(autoregressive, tmp_path, lines, monkeypatch):
    """Of accumulated batches one alone may have rows of several documents, or doubled ones; each token counts alike."""
    run, options = autoregressive
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} words " * (1 if number % 3 else 40))
    laid, widths = BlockDiffusion.seen, set()

    def seen(self, texts, noisy):
        tokens, visibility = laid(self, texts, noisy)
        widths.add(tokens.shape[1])
        return tokens, visibility

    monkeypatch.setattr(BlockDiffusion, "seen", seen)
    argv = ["fit", *options, *BLOCKS[:6], "--model.objective.block_size", "1", "--trainer.max_steps", "8"]
    argv += ["--model.objective.estimator", "count", "--init_from", str(run), "--trainer.limit_val_batches", "1"]
    argv += ["--data.source.path", str(tmp_path / "text")]
    for name, parts in (("one", "1"), ("two", "2")):
        widths.clear()
        assert main([*argv, "--trainer.accumulate_grad_batches", parts, "--run_dir", str(tmp_path / name)]) == 0
        assert len(widths) > 1
    one, two = (dict(lines(tmp_path / name).pairs("train/grad_norm")) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=2e-4)


def test_a_row_that_is_no_multiple_is_refused_in_one_line(autoregressive, tmp_path, capsys):
    run, options = autoregressive
    argv = ["fit", *options, *BLOCKS, "--data.seq_len", "18", "--init_from", str(run)]
    assert main([*argv, "--run_dir", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: WSDConversion.blocks: 4 does not divide data.seq_len 18; nearest: 3"


@pytest.mark.parametrize("kind", [AttentionAnnealing, ClippedNoiseSearch, MaskNoise, WSDConversion])
def test_a_kind_of_which_there_can_be_one_is_refused_twice(kind):
    with pytest.raises(RequestError, match=f"trainer.callbacks: {kind.__name__} 2 times; allowed: once"):
        refuse_twice([kind(), EarlyStopping("train/loss"), kind()])
    refuse_twice([kind(), EarlyStopping("train/loss"), EarlyStopping("val/loss_bound")])


def test_two_conversions_are_refused_in_one_line(autoregressive, tmp_path, capsys):
    run, options = autoregressive
    argv = ["fit", *options, *BLOCKS, "--trainer.callbacks+=WSDConversion", "--init_from", str(run)]
    assert main([*argv, "--run_dir", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: trainer.callbacks: WSDConversion 2 times; allowed: once"
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_shape_is_refused_as_ever(autoregressive, tmp_path, capsys):
    run, options = autoregressive
    argv = ["fit", *options, *BLOCKS, "--model.shape.dim", "24", "--init_from", str(run)]
    assert main([*argv, "--run_dir", str(tmp_path / "run")]) == 2
    assert "tensors do not fit, first: size mismatch" in capsys.readouterr().err.splitlines()[-1]


def without_free_rows(folder):
    """Cut the rows that belong to no token off a public model; returns how many are left."""
    config, file = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    cut = {
        name: tensor[:size] if len(tensor) == config["vocab_size"] else tensor
        for name, tensor in load_file(file).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in cut.items()}, file)
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    return size


@pytest.mark.slow
def test_a_public_model_without_a_mask_is_given_one(tiny, tmp_path, public_folder, shown):
    """Its network has no free row for one: the embedding grows, and the run says so."""
    folder = public_folder()
    rows = without_free_rows(folder)
    started, run = tmp_path / "imported", tmp_path / "run"
    assert main(["import", str(folder), str(started)]) == 0
    before = load(started)
    assert before.encoder.specials.mask is None
    assert before.encoder.specials.vocab_size == rows
    source = [*tiny[-2:], "--data.seq_len", "16", "--data.batch_size", "4", "--trainer.max_steps", "8"]
    said = shown(*source, *BLOCKS, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
                 "--trainer.limit_val_batches", "2", "--init_from", started, "--run_dir", run)  # fmt: skip
    assert f"conversion: the tokenizer has a mask now, id {rows}; its row is the mean of the others" in said
    figures = re.search(r"blocks of 1 ([\d.]+) nats per token, autoregressive ([\d.]+), difference (\S+)", said)
    assert float(figures[1]) == pytest.approx(float(figures[2]), abs=2e-6) and abs(float(figures[3])) < 1e-5
    assert "softmaxes" not in said  # it had no mask to be left out
    after = load(run)
    assert after.encoder.specials.mask == rows and after.net.embed.weight.shape[0] == rows + 1
    assert main(["fit", "--run_dir", str(run), "--resume"]) == 2  # it is finished, and could be read
