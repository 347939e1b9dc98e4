"""The gradients of a step are gone before the forward pass of the next: less memory, the same training."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule

from lit_small_lm.__main__ import main
from lit_small_lm.training.gradients import drop_gradients
from lit_small_lm.training.lit import AutoregressiveLM, LanguageModule


def test_gradients_are_dropped_as_an_optimizer_drops_them():
    """The plain twin is torch's `zero_grad`."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    for parameter in net[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    found = []
    for drop in (drop_gradients, torch.optim.Optimizer.zero_grad):
        twin = copy.deepcopy(net)
        groups = [{"params": part.parameters()} for part in twin]
        drop(torch.optim.AdamW(groups))
        found.append([parameter.grad for parameter in twin.parameters()])
    assert found == [[None] * 4] * 2


@pytest.mark.parametrize("parts", [1, 2])
def test_a_forward_pass_begins_without_the_gradients_of_the_step_before(parts, tiny, tmp_path, monkeypatch):
    alive, step = [], AutoregressiveLM.training_step

    def training_step(self, batch, batch_idx):
        alive.append(sum(p.grad is not None for p in self.parameters()) / len(list(self.parameters())))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(AutoregressiveLM, "training_step", training_step)
    argv = ["fit", *tiny, "--trainer.max_steps", "3", "--trainer.accumulate_grad_batches", str(parts)]
    assert main([*argv, "--run_dir", str(tmp_path / "run")]) == 0
    assert alive == [0.0, 1.0][:parts] * 3


class Kept:
    """Frees gradients where Lightning does, between forward and backward pass."""

    def on_train_batch_start(self, batch, batch_idx):
        kept = [(parameter, parameter.grad) for parameter in self.parameters()]
        LanguageModule.on_train_batch_start(self, batch, batch_idx)
        for parameter, gradient in kept:
            parameter.grad = gradient

    def optimizer_zero_grad(self, *args):
        LightningModule.optimizer_zero_grad(self, *args)


@pytest.mark.parametrize("parts", ["1", "2"])
def test_training_is_the_same_bit_for_bit(parts, tiny, tmp_path, lines, monkeypatch):
    argv = ["fit", *tiny, "--trainer.accumulate_grad_batches", parts, "--run_dir"]
    assert main([*argv, str(tmp_path / "freed")]) == 0
    for hook in ("on_train_batch_start", "optimizer_zero_grad"):
        monkeypatch.setattr(AutoregressiveLM, hook, getattr(Kept, hook), raising=False)
    assert main([*argv, str(tmp_path / "kept")]) == 0
    freed, kept = lines(tmp_path / "freed"), lines(tmp_path / "kept")
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        assert freed.pairs(name) == kept.pairs(name) != []
