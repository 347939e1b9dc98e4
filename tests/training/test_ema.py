"""The moving average of the weights: its values, where it is used, and that it survives a resume to the bit."""

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, load, read, write
from lit_small_lm.errors import RequestError
from lit_small_lm.training.callbacks.checkpoints import Checkpoints
from lit_small_lm.training.callbacks.ema import EMA

EVERY_STEP = ["--checkpoints.every_n_steps", "1", "--schedule.decay", "0"]


class Crash(BaseException):
    """Stands for a kill."""


def states(run_dir):
    """(averaged, trained) weights by step."""
    found = [read(file) for file in checkpoints_in(run_dir)[::-1]]
    return [(c["state_dict"], c.get("current_model_state")) for c in found]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, tiny):
    """A run of 12 steps with an average, every step of it saved; two batches a step."""
    accumulated = ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "8"]
    argv, run = ["fit", *tiny, *EVERY_STEP, *accumulated, "--ema_decay", "0.6"], tmp_path_factory.mktemp("ema") / "run"
    assert main([*argv, "--run_dir", str(run)]) == 0
    return run


def test_the_average_follows_its_formula_and_training_does_not_notice(averaged, tmp_path, tiny, lines):
    saved = states(averaged)
    average = saved[0][1]
    for update, (found, trained) in enumerate(saved):  # the first update copies
        kept = 0.0 if update == 0 else min(0.6, (1 + update) / (10 + update))
        average = {key: kept * average[key] + (1 - kept) * trained[key] for key in trained}
        for key in found:
            torch.testing.assert_close(found[key], average[key], rtol=1e-4, atol=1e-6)
    assert not equal(*saved[-1])
    plain = ["fit", *tiny, *EVERY_STEP, "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "8"]
    assert main([*plain, "--run_dir", str(tmp_path / "plain")]) == 0
    assert equal(states(tmp_path / "plain")[-1][0], saved[-1][1])
    assert lines(tmp_path / "plain").pairs("train/loss") == lines(averaged).pairs("train/loss")


def test_evaluation_and_generation_use_the_average(averaged, tmp_path, lines, capsys):
    last = checkpoints_in(averaged)[0]
    model, content = load(last), read(last)
    assert equal({f"net.{key}": value for key, value in model.net.state_dict().items()}, content["state_dict"])
    swapped = {**content, "state_dict": content["current_model_state"]}
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    write(swapped, tmp_path / "other" / "checkpoints" / last.name)
    scores = []
    for run in (averaged, tmp_path / "other"):
        capsys.readouterr()
        assert main(["validate", "--run_dir", str(run)]) == 0
        scores.append(next(line for line in capsys.readouterr().err.splitlines() if line.startswith("validation:")))
    during = lines(averaged).pairs("val/bits_per_byte")[-1]
    assert during[0] == 12
    assert f"{during[1]:.4f}" in scores[0]
    assert f"{during[1]:.4f}" not in scores[1]


def test_init_from_takes_the_average_and_says_so(averaged, tmp_path, tiny, capsys):
    last = checkpoints_in(averaged)[0]
    capsys.readouterr()
    argv = ["fit", *tiny, *EVERY_STEP, "--optim.lr", "1e-30", "--optim.weight_decay", "0", "--init_from", str(last)]
    assert main([*argv, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / "second")]) == 0
    assert "averaged weights are taken" in capsys.readouterr().err
    assert equal(states(tmp_path / "second")[0][0], read(last)["state_dict"])


def test_branching_continues_the_average(averaged, tmp_path):
    stable = averaged / "checkpoints" / "step=00000005.ckpt"
    assert main(["fit", "--branch_from", str(stable), "--run_dir", str(tmp_path / "branch")]) == 0
    wanted, found = states(averaged)[5:], states(tmp_path / "branch")
    assert len(wanted) == len(found)
    for one, other in zip(wanted, found, strict=True):
        assert equal(one[0], other[0])
        assert equal(one[1], other[1])


def test_an_average_may_end_on_a_resume(averaged, tmp_path, capsys):
    stable = averaged / "checkpoints" / "step=00000005.ckpt"
    argv = ["fit", "--branch_from", str(stable), "--ema_decay", "null", "--run_dir", str(tmp_path / "off")]
    assert main(argv) == 0
    assert "changed: ema_decay: 0.6 -> None" in capsys.readouterr().err
    assert equal(states(tmp_path / "off")[-1][0], states(averaged)[-1][1])
    assert states(tmp_path / "off")[-1][1] is None


def test_an_average_may_begin_on_a_resume(averaged, tmp_path, tiny, capsys):
    stable = ["--trainer.max_steps", "6", "--trainer.accumulate_grad_batches", "2"]
    assert main(["fit", *tiny, *EVERY_STEP, *stable, "--run_dir", str(tmp_path / "plain")]) == 0
    last = checkpoints_in(tmp_path / "plain")[0]
    argv = ["fit", "--branch_from", str(last), "--ema_decay", "0.6", "--trainer.max_steps", "12"]
    capsys.readouterr()
    assert main([*argv, "--run_dir", str(tmp_path / "on")]) == 0
    said = capsys.readouterr().err
    assert "changed: ema_decay: None -> 0.6" in said
    assert "warning" not in said.lower()
    found = states(tmp_path / "on")
    assert equal(*found[0])
    assert equal(found[-1][1], states(averaged)[-1][1])
    assert not equal(*found[-1])


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "nan", "often"])
def test_a_share_out_of_range_is_refused(value, tmp_path, tiny, capsys):
    assert main(["fit", *tiny, "--ema_decay", value, "--run_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --ema_decay: ")
    assert not (tmp_path / "run").exists()


def test_a_strategy_that_shards_is_refused():
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    EMA(0.5).refuse_sharded(DDPStrategy())
    with pytest.raises(RequestError, match="ema_decay: 0.5 with trainer.strategy ModelParallelStrategy"):
        EMA(0.5).refuse_sharded(ModelParallelStrategy())


def test_the_last_checkpoint_of_a_run_in_epochs_keeps_both(tmp_path, tiny):
    text = tmp_path / "small.txt"
    text.write_text("a few words and then some more of them " * 10)
    argv = ["fit", *tiny, "--data.source.path", str(text), "--ema_decay", "0.9", "--trainer.max_steps", "-1"]
    assert main([*argv, "--trainer.max_epochs", "2", "--run_dir", str(tmp_path / "run")]) == 0
    assert not equal(*states(tmp_path / "run")[-1])


@pytest.mark.slow  # compiles three times
def test_a_compiled_network_is_averaged_too(tmp_path, tiny, monkeypatch):
    """A compiled run, killed and resumed, ends with both sets of weights of the whole one."""
    argv = [
        "fit",
        *tiny,
        *EVERY_STEP,
        "--ema_decay",
        "0.6",
        "--compile",
        "default",
        "--trainer.val_check_interval",
        "4",
    ]
    assert main([*argv, "--run_dir", str(tmp_path / "whole")]) == 0
    original = Checkpoints.on_train_batch_end

    def dying(self, trainer, *others):
        original(self, trainer, *others)
        if trainer.global_step == 7:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", dying)
        with pytest.raises(Crash):
            main([*argv, "--run_dir", str(tmp_path / "killed")])
    assert main(["fit", "--run_dir", str(tmp_path / "killed"), "--resume"]) == 0
    for one, other in zip(states(tmp_path / "whole")[-1], states(tmp_path / "killed")[-1], strict=True):
        assert equal(one, other)


@pytest.mark.slow  # two processes
def test_processes_that_share_the_data_keep_one_average(tmp_path, tiny, cli):
    more = ["--ema_decay", "0.6", "--trainer.devices", "2"]
    two = cli("fit", *tiny, *EVERY_STEP, *more, "--trainer.strategy", "ddp", "--run_dir", tmp_path / "two")
    assert two.rc == 0, two.stderr[-2000:]
    assert main(["fit", *tiny, *EVERY_STEP, "--ema_decay", "0.6", "--run_dir", str(tmp_path / "one")]) == 0
    for found, wanted in zip(states(tmp_path / "two"), states(tmp_path / "one"), strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in other)
    refused = cli("fit", *tiny, *more, "--trainer.strategy", "FSDP2", "--run_dir", tmp_path / "sharded")
    assert refused.rc == 2
    assert "error: ema_decay: 0.6 with trainer.strategy FSDP2" in refused.stderr
    assert not (tmp_path / "sharded").exists()
