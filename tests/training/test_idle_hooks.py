"""Empty hooks of a step are passed over while a fit runs, and no others."""

import inspect

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_small_lm.__main__ import main
from lit_small_lm.training import lit
from lit_small_lm.training.idle_hooks import STEP, call_idle, pass_over_idle

BUSY = '''
from lightning.pytorch import Callback

class Busy(Callback):
    """Notes which hooks were called, one of them set on the object alone."""

    def __init__(self):
        self.called = []
        self.on_after_backward = lambda trainer, pl_module: self.called.append("after_backward")

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        idle = [name for name in ("on_before_backward", "on_train_batch_start") if getattr(self, name) is None]
        self.called.append(f"before_zero_grad {len(idle)}")

    def on_fit_end(self, trainer, pl_module):
        assert callable(self.on_before_backward) and callable(pl_module.on_after_backward)
        print(self.called)
'''


FAILS = '''
from lightning.pytorch import Callback

class Fails(Callback):
    """Fails in a step."""

    made = []

    def __init__(self):
        self.made.append(self)

    def on_train_batch_end(self, *args):
        1 / 0
'''


class Silent(Callback):
    """Does nothing at all."""


class Counting(LightningModule):
    """A module with one hook of its own."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Its own."""


def test_empty_hooks_alone_are_passed_over_and_come_back():
    silent, module = Silent(), Counting()
    trainer = Trainer(callbacks=[silent], logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    pass_over_idle(trainer)
    pass_over_idle(trainer)  # a second fit that begins in the middle of one
    assert [getattr(silent, name) for name in STEP] == [None] * len(STEP)
    assert [name for name in STEP if getattr(module, name) is not None] == ["on_train_batch_end"]
    call_idle(trainer)
    assert all(callable(getattr(part, name)) for part in (silent, module) for name in STEP)


def test_a_fit_that_fails_before_it_has_a_module_has_no_hooks_to_mend():
    call_idle(Trainer(callbacks=[Silent()], logger=False, enable_checkpointing=False, enable_progress_bar=False))


def test_hooks_that_a_failed_fit_left_are_called_once_they_hold_something():
    class Later(Callback):
        """Gets a hook when it has been through a fit."""

    later, module = Later(), Counting()
    trainer = Trainer(callbacks=[later], logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    pass_over_idle(trainer)
    Later.on_after_backward = lambda self, trainer, pl_module: None
    pass_over_idle(trainer)
    assert [name for name in STEP if getattr(later, name) is not None] == ["on_after_backward"]


def test_hooks_are_whole_after_a_fit_that_failed(tmp_path, tiny):
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS)
    options = ["--run_dir", str(tmp_path / "run"), "--plugins", str(plugin), "--trainer.callbacks+=Fails"]
    assert main(["fit", *tiny, *options, "--trainer.max_steps", "2"]) == 1
    (failed,) = next(found for found in Callback.__subclasses__() if found.__name__ == "Fails").made
    assert all(callable(getattr(failed, name)) for name in STEP)


def test_hooks_with_something_in_them_are_called_at_every_step(tmp_path, tiny, capfd):
    plugin = tmp_path / "busy.py"
    plugin.write_text(BUSY)
    options = ["--run_dir", str(tmp_path / "run"), "--plugins", str(plugin), "--trainer.callbacks+=Busy"]
    assert main(["fit", *tiny, *options, "--trainer.max_steps", "2"]) == 0
    assert str(["before_zero_grad 2", "after_backward"] * 2) in capfd.readouterr().out


def test_a_run_is_the_same_where_every_hook_is_called(tmp_path, tiny, monkeypatch):
    found = []
    for name in ("passed", "called"):
        assert main(["fit", *tiny, "--run_dir", str(tmp_path / name), "--trainer.max_steps", "3"]) == 0
        weights = next((tmp_path / name / "checkpoints").glob("*3.ckpt"))
        found.append(torch.load(weights, weights_only=False)["state_dict"])
        monkeypatch.setattr(lit, "pass_over_idle", lambda trainer: None)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_signature_that_lightning_is_told_is_the_true_one():
    step = lit.LanguageModule.training_step
    told = vars(step).pop("__signature__")
    try:
        assert inspect.signature(step) == told and list(told.parameters) == ["self", "batch", "batch_idx"]
    finally:
        step.__signature__ = told


@pytest.mark.parametrize("value", [3, 2.5, "name", None, True])
def test_plain_values_take_the_place_of_plain_ones_and_never_of_parts(value):
    model = lit.AutoregressiveLM.__new__(lit.AutoregressiveLM)
    LightningModule.__init__(model)
    model.plain, model.part = "before", torch.nn.Linear(1, 1)
    model.plain = value
    assert vars(model)["plain"] is value
    model.part = None
    assert model.part is None and not list(model.children())
    model.part = torch.nn.Linear(1, 1)
    assert len(list(model.children())) == 1
