"""Steps that are not finite: left out on the device, on every process, and what follows from them."""

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in, read, step_of
from lit_small_lm.durable import manifest_of
from lit_small_lm.plugin import Parameter
from lit_small_lm.training.judge import NOT_FINITE, SPIKE, TAKEN, Judge, hold_back
from lit_small_lm.training.lit import LanguageModule
from lit_small_lm.training.muon import Muon
from lit_small_lm.training.optim import AdamW

BAD = float("nan")


@pytest.fixture
def poison(monkeypatch):
    """`poison({5: nan})` multiplies the loss of the step that takes the rows of step 5 of a run that never went back.

    What is multiplied is decided by the rows, so that data that was left out takes its fault with it.
    """
    original, rows = LanguageModule.training_step, {}

    def arm(factors, name="loss", by="rows"):
        def step(self, batch, batch_idx):
            loss, number = original(self, batch, batch_idx), self.global_step + 1
            if by == "rows":
                first = number if number not in rows.values() else 0
                number = rows.setdefault(tuple(batch.sample_ids.tolist()), first)
            factor = factors.get(number, 1.0)
            if name == "loss" and number in factors:
                self.sums.nats = self.sums.nats * factor
            return loss * factor

        monkeypatch.setattr(LanguageModule, "training_step", step)

    return arm


def state(run_dir, step):
    return read(next(file for file in checkpoints_in(run_dir) if step_of(file) == step))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------------ on the device
def parameters(seed):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"norm": (8,), "qkv": (8, 6), "up": (6, 8)}
    return [
        Parameter(role, torch.nn.Parameter(torch.randn(shape, generator=draw)), role, 1.0, 1.0, 1.0)
        for role, shape in shapes.items()
    ]


@pytest.mark.parametrize(("optim", "fused"), [(AdamW(), True), (AdamW(), False), (Muon(), True), (Muon(), False)])
def test_a_step_left_out_never_happened(optim, fused):
    """Weights, moments and counters after steps of which some were left out are those of the others alone."""
    found = []
    for bad in ({0, 3, 4}, set()):
        mine, draw = parameters(0), torch.Generator().manual_seed(1)
        optimizer = optim.build(mine, fused)
        for step in range(7):
            gradients = [torch.randn(part.tensor.shape, generator=draw) for part in mine]
            if not bad and step in (0, 3, 4):
                continue
            for part, gradient in zip(mine, gradients, strict=True):
                part.tensor.grad = gradient * (BAD if step in bad else 1)
            hold_back(optimizer, torch.tensor(NOT_FINITE if step in bad else TAKEN))
            optimizer.step()
        found.append((mine, optimizer.state_dict()["state"]))
    (mine, moments), (others, other_moments) = found
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(mine, others, strict=True))
    assert all(same(moments[number], other_moments[number]) for number in other_moments)


def test_the_device_and_the_host_agree():
    """`found_inf` of the fused kernels, and its plain twin: no gradients."""
    found = []
    for twin in (False, True):
        mine, draw = parameters(0), torch.Generator().manual_seed(1)
        optimizer = AdamW().build(mine, fused=True)
        if twin:
            optimizer._step_supports_amp_scaling = False
        for step in range(6):
            for part in mine:
                part.tensor.grad = torch.randn(part.tensor.shape, generator=draw) * (BAD if step in (1, 2) else 1)
            hold_back(optimizer, torch.tensor(NOT_FINITE if step in (1, 2) else TAKEN))
            optimizer.step()
        found.append([part.tensor for part in mine])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_spike_is_told_from_the_steps_before_it():
    judge, draw = Judge(sigmas=6, window=8), torch.Generator().manual_seed(0)
    losses = (3 + 0.1 * torch.randn(40, generator=draw)).tolist()
    losses[2], losses[20], losses[21], losses[30] = 9.0, 9.0, BAD, 4.5
    verdicts = []
    for step, loss in enumerate(losses):
        norm = torch.tensor(50.0 if step == 35 else 1.0 + loss / 100)
        verdicts.append(int(judge.rule(torch.tensor(loss), norm if loss == loss else torch.tensor(1.0))))
        if step == 33:  # a resume does not change what comes after it
            saved, judge = judge.state_dict(), Judge(sigmas=6, window=8)
            judge.load_state_dict(saved)
    assert {step: verdict for step, verdict in enumerate(verdicts) if verdict != TAKEN} == {
        20: SPIKE,
        21: NOT_FINITE,
        30: SPIKE,
        35: SPIKE,
    }  # fmt: skip  (2: too few steps before it)


@pytest.mark.parametrize("overflow_allowed", [False, True])
def test_what_is_not_finite_is_found_as_torch_finds_it(overflow_allowed):
    """The plain twin is `isfinite`."""
    values = [0.0, -2.5, 3e38, 1e308, float("inf"), -float("inf"), BAD]
    for loss in torch.tensor(values, dtype=torch.float64):
        for norm in torch.tensor(values):
            sound = loss.isfinite() if overflow_allowed else loss.isfinite() & norm.isfinite()
            assert int(Judge().rule(loss, norm, overflow_allowed)) == (TAKEN if sound else NOT_FINITE)


def test_an_overflow_that_fp16_looks_for_is_no_divergence():
    loss, norm = torch.tensor(3.0), torch.tensor(float("inf"))
    assert int(Judge().rule(loss, norm, overflow_allowed=True)) == TAKEN
    assert int(Judge().rule(loss, norm)) == NOT_FINITE
    assert int(Judge().rule(torch.tensor(BAD), norm, overflow_allowed=True)) == NOT_FINITE


# ------------------------------------------------------------------------------------------------------------ in a run
def test_the_first_bad_step_stops_the_run_before_it_touches_anything(tmp_path, tiny, lines, poison, capsys):
    poison({5: BAD})
    assert main(["fit", *tiny, "--trainer.max_steps", "40", "--run_dir", str(tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step 5: train/loss nan, train/grad_norm nan on training rows ")
    assert "training diverged" in last and len(last) <= 300
    assert [step_of(file) for file in checkpoints_in(tmp_path)] == [3]
    assert lines(tmp_path).pairs("train/loss")[-1] == (5, "nan")


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run(tmp_path, tiny, poison, capsys):
    poison({5: float("inf")}, name="gradient")
    assert main(["fit", *tiny, "--run_dir", str(tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step 5: train/loss 5.") and "train/grad_norm inf" in last or "nan" in last


EXTRAS = [
    "--ema_decay", "0.9", "--model.backbone.layer.ffn", "MoE", "--model.backbone.layer.ffn.expert", "GatedMLP",
    "--model.backbone.layer.ffn.n_experts", "4", "--model.backbone.layer.ffn.router", "SigmoidRouter",
    "--model.backbone.layer.ffn.router.top_k", "2", "--model.backbone.layer.ffn.router.bias_rate", "0.1",
]  # fmt: skip


def test_a_skipped_step_leaves_everything_as_it_was(tmp_path, tiny, lines, poison):
    """Weights, average and router bias do not move; the step counts, and so does its data."""
    poison({5: BAD, 6: BAD})
    argv = ["fit", *tiny, *EXTRAS, "--guard.non_finite", "skip", "--checkpoints.every_n_steps", "2"]
    with pytest.warns(UserWarning, match="steps left out, whose loss or gradient was not finite: 2"):
        assert main([*argv, "--run_dir", str(tmp_path)]) == 0
    before, after = state(tmp_path, 4), state(tmp_path, 6)
    for part in ("state_dict", "current_model_state"):
        assert same(before[part], after[part]), part
    moments = [content["optimizer_states"][0]["state"] for content in (before, after)]
    assert all(same(moments[0][number], moments[1][number]) for number in moments[0])
    assert not same(after["state_dict"], state(tmp_path, 8)["state_dict"])
    found = lines(tmp_path)
    assert found.pairs("train/skipped_steps") == [(5, 1), (6, 2)]
    assert [step for step, _ in found.pairs("tokens")][-1] == 12 and dict(found.pairs("tokens"))[12] == 12 * 64


def test_a_run_that_skips_ends_when_nothing_else_comes(tmp_path, tiny, poison, capsys):
    poison(dict.fromkeys(range(5, 99), BAD))
    argv = ["fit", *tiny, "--guard.non_finite", "skip", "--guard.patience", "3", "--trainer.max_steps", "40"]
    assert main([*argv, "--run_dir", str(tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step 5: ") and ", and in 2 after it: training diverged" in last
    assert all(value.isfinite().all() for value in state(tmp_path, 6)["state_dict"].values())
    assert step_of(checkpoints_in(tmp_path)[0]) == 6


@pytest.mark.parametrize("reading", ["prepared", "streamed"])
def test_a_rewound_run_is_one_that_never_saw_that_data(reading, tmp_path, tiny, lines, poison, capsys):
    """It equals, loss by loss, a run whose data was left out from the beginning, also after a resume."""
    from lit_small_lm.data.datamodule import TokenData

    argv = ["fit", *tiny, "--data.reading", reading, "--trainer.log_every_n_steps", "1"]
    poison({7: BAD, 8: BAD})
    rewind = ["--guard.non_finite", "rewind", "--guard.patience", "2"]
    assert main([*argv, *rewind, "--run_dir", str(tmp_path / "rewound")]) == 0
    said = capsys.readouterr().err
    assert "rewind 1 of 3: back to step 6, leaving out the data of steps 7 to 8" in said
    with pytest.MonkeyPatch.context() as patch:
        original = TokenData.setup

        def setup(self, stage):
            original(self, stage)
            self.left_out = ((24, 8),)

        patch.setattr(TokenData, "setup", setup)
        assert main([*argv, "--run_dir", str(tmp_path / "without")]) == 0
    rewound, without = lines(tmp_path / "rewound"), lines(tmp_path / "without")
    for key in ("train/loss", "train/lr", "val/loss", "tokens"):
        assert rewound.pairs(key) == without.pairs(key) != [], key
    assert [step for step, _ in rewound.pairs("train/loss")] == list(range(1, 13))
    assert state(tmp_path / "rewound", 12)["TokenData"] == {"left_out": ((24, 8),)}
    newest = checkpoints_in(tmp_path / "rewound")[0]
    for file in (newest, manifest_of(newest)):
        file.unlink()
    assert main(["fit", "--run_dir", str(tmp_path / "rewound"), "--resume"]) == 0
    assert lines(tmp_path / "rewound").pairs("train/loss") == without.pairs("train/loss")


def test_rewinds_are_bounded(tmp_path, tiny, poison, capsys):
    poison(dict.fromkeys(range(5, 99), BAD), by="step")
    argv = ["fit", *tiny, "--guard.non_finite", "rewind", "--guard.patience", "2", "--guard.rewinds", "1"]
    assert main([*argv, "--run_dir", str(tmp_path)]) == 1
    assert "(went back 1 times, guard.rewinds)" in capsys.readouterr().err.splitlines()[-1]
    assert main([*argv, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--run_dir", str(tmp_path / "b")]) == 2
    assert "guard.non_finite: rewind with 2 processes" in capsys.readouterr().err.splitlines()[-1]


def test_spikes_are_left_out_and_a_flat_gradient_is_said_once(tmp_path, tiny, lines, poison):
    poison({10: 50.0, **dict.fromkeys(range(14, 30), 0.0)})
    argv = ["fit", *tiny, "--guard.spike_sigmas", "6", "--guard.spike_window", "8", "--trainer.max_steps", "28"]
    with pytest.warns(UserWarning) as said:
        assert main([*argv, "--run_dir", str(tmp_path)]) == 0
    assert lines(tmp_path).pairs("train/skipped_steps") == [(10, 1)]
    flat = [str(warning.message) for warning in said if "exactly 0" in str(warning.message)]
    assert flat == ["step 23: the gradient has been exactly 0 for 10 steps; nothing is learned"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, tiny, monkeypatch, capsys):
    original = LanguageModule.optimizer_step

    def broken(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.global_step == 5:
            moments = self.trainer.optimizers[0].state[self.net.layers[0].mixer.o_proj.weight]
            moments["exp_avg_sq"][0, 0] = float("inf")

    monkeypatch.setattr(LanguageModule, "optimizer_step", broken)
    assert main(["fit", *tiny, "--run_dir", str(tmp_path)]) == 1
    assert "exp_avg_sq of net.layers.0.mixer.o_proj.weight is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert [step_of(file) for file in checkpoints_in(tmp_path)] == [3]
