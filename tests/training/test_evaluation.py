"""What a validation sees of a network that training ramps up: all that has come so far, and all of it outside a fit."""

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.checkpoint import checkpoints_in
from lit_small_lm.nn.prores import RampedPath

RAMP = [
    "--model.backbone.norm", "ProRes", "--model.backbone.norm.scheme", "PreNorm", "--model.backbone.norm.steps", "6",
    "--depth.every_n_steps", "null", "--trainer.val_check_interval", "3", "--optim.lr", "0.05",
]  # fmt: skip
OBJECTIVES = {
    "next token": ([], ["bits_per_byte"]),
    "masked": (["--model", "DiffusionLM"], ["bits_per_byte_bound"]),
    "joint": (
        ["--model", "DiffusionLM", "--model.objective", "JointDiffusion"], ["bits_per_byte", "bits_per_byte_bound"]),
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """(training, step) of every branch that has run."""
    found, original = [], RampedPath.forward

    def noting(self, carry, branch):
        step = branch.ctx.step
        found.append((self.training, None if step is None else step.item()))
        return original(self, carry, branch)

    monkeypatch.setattr(RampedPath, "forward", noting)
    return found


@pytest.mark.slow  # three commands each
@pytest.mark.parametrize("name", OBJECTIVES)
def test_while_fitting_the_network_is_seen_at_its_step(name, tiny, tmp_path, lines, asked, capsys):
    model, figures = OBJECTIVES[name]
    argv = ["fit", *tiny, *RAMP, *model, "--trainer.max_steps", "6", "--run_dir", str(tmp_path / "run")]
    assert main(argv) == 0
    assert {step for training, step in asked if not training} >= {3, 6}
    seen = [dict(lines(tmp_path / "run").pairs(f"val/{figure}")) for figure in figures]
    for file in checkpoints_in(tmp_path / "run"):
        asked.clear()
        capsys.readouterr()
        assert main(["validate", "--ckpt_path", str(file)]) == 0
        assert {step for _, step in asked} == {None}
        said, step = capsys.readouterr().err, int(file.stem.split("=")[1])
        whole = step >= 6  # before that half of every branch
        assert [f"{values[step]:.4f}" in said for values in seen] == [whole] * len(figures), (step, seen, said)
