"""Noise on the embeddings of masked positions: where it is, how much, and that nothing but counters decides it."""

from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Batch, Dims, Specials
from lit_small_lm.training.callbacks.mask_noise import MaskNoise, normal, with_noise
from lit_small_lm.training.diffusion import DiffusionLM
from lit_small_lm.training.lit import AutoregressiveLM

SPECIALS = Specials(11, end=0, pad=1, mask=2)
TOKENS = torch.tensor([[0, 2, 5, 2], [0, 6, 2, 2]])


def batch(slots=(0, 1)):
    docs = torch.zeros(2, 5, dtype=torch.long)
    return Batch(docs, docs, None, torch.arange(2), torch.tensor(slots), SPECIALS)


def test_it_falls_evenly_to_nothing():
    noise = MaskNoise(std=0.4, steps=0.5)
    assert [noise.deviation(step, 8) for step in range(6)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0])
    assert MaskNoise(std=0.4, steps=1).deviation(1, 8) == 0


def test_masked_positions_have_noise_and_no_others():
    x = torch.randn(2, 4, 3)
    added = with_noise(x, TOKENS, batch(), 7, 0.5) - x
    assert torch.equal(added.abs().sum(-1) > 0, SPECIALS.mask == TOKENS)


def test_noise_goes_with_the_slot_not_with_the_place_in_the_batch():
    x = torch.zeros(2, 4, 3)
    whole = with_noise(x, TOKENS, batch((4, 9)), 7, 1.0)
    swapped = with_noise(x, TOKENS.flip(0), batch((9, 4)), 7, 1.0)
    assert torch.equal(swapped.flip(0), whole)
    assert not torch.equal(with_noise(x, TOKENS, batch((4, 9)), 8, 1.0), whole)
    rows = TOKENS[:1].repeat(2, 1)  # the same positions of two rows
    assert not torch.equal(*with_noise(x, rows, batch(), 7, 1.0))


def test_views_of_one_row_have_noise_of_their_own():
    rows = TOKENS.repeat_interleave(2, 0)
    found = with_noise(torch.zeros(4, 4, 3), rows, batch(), 7, 1.0)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[::2], with_noise(torch.zeros(2, 4, 3), TOKENS, batch(), 7, 1.0))


def test_draws_are_normal():
    draws = normal(3, torch.arange(200).unsqueeze(1), torch.arange(200))
    assert draws.mean().item() == pytest.approx(0, abs=0.02) and draws.std().item() == pytest.approx(1, abs=0.02)
    assert (draws.abs() < 1).double().mean().item() == pytest.approx(0.6827, abs=0.01)


def started(net, deviation_at=0):
    """The callback on a network, at a step of a run of ten."""
    noise, module = MaskNoise(std=0.5, steps=4), SimpleNamespace(net=net, seed=0, noted={})
    noise.on_train_start(None, module)
    noise.on_train_batch_start(SimpleNamespace(global_step=deviation_at, max_steps=10), module, batch(), 0)
    return noise, module


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Backbone(BackboneSpec(), Dims(dim=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12), 11)


def test_only_training_is_noisy_and_only_at_the_beginning(net):
    ctx = Context(Visibility.rows(TOKENS, kind="bidirectional"))
    plain = net(TOKENS, ctx)
    noise, module = started(net)
    assert module.noted == {"mask_noise": 0.5}
    assert not torch.equal(net(TOKENS, ctx), plain)
    assert torch.equal(net.eval()(TOKENS, ctx), plain)
    net.train()
    noise.on_train_batch_start(SimpleNamespace(global_step=4, max_steps=10), module, batch(), 0)
    assert torch.equal(net(TOKENS, ctx), plain)
    noise.on_train_batch_start(SimpleNamespace(global_step=0, max_steps=10), module, batch(), 0)
    noise.on_train_end(None, module)
    assert torch.equal(net(TOKENS, ctx), plain)


def test_a_compiled_network_has_the_same_noise(net):
    torch.compiler.reset()
    ctx = Context(Visibility.rows(TOKENS, kind="bidirectional"))
    noise, module = started(net)
    wanted = net(TOKENS, ctx)
    net.compile(backend="eager")
    torch.testing.assert_close(net(TOKENS, ctx), wanted)
    noise.on_train_batch_start(SimpleNamespace(global_step=2, max_steps=10), module, batch(), 0)
    later = net(TOKENS, ctx)
    assert not torch.allclose(later, wanted)
    noise.on_train_batch_start(SimpleNamespace(global_step=4, max_steps=10), module, batch(), 0)
    torch.testing.assert_close(net(TOKENS, ctx), net.eval()(TOKENS, ctx))
    torch.compiler.reset()


def test_refused():
    for settings in ({"std": 0.0}, {"std": float("inf")}, {"steps": 0}, {"steps": 1.5}):
        with pytest.raises(RequestError, match=f"MaskNoise.{next(iter(settings))}"):
            MaskNoise(**settings)
    MaskNoise().setup(None, DiffusionLM(), "fit")
    with pytest.raises(RequestError, match="model is AutoregressiveLM; allowed: DiffusionLM"):
        MaskNoise().setup(None, AutoregressiveLM(), "fit")


@pytest.mark.slow
def test_accumulated_batches_have_the_noise_of_one(tiny, tmp_path, lines):
    argv = ["fit", *tiny, "--model", "DiffusionLM", "--model.objective.estimator", "complementary"]
    argv += ["--trainer.callbacks", "MaskNoise", "--trainer.callbacks.std", "2.0", "--trainer.max_steps", "3"]
    for name, extra in {"one": [], "two": ["--data.micro_batch_size", "2"]}.items():
        assert main([*argv, *extra, "--trainer.callbacks.steps", "3", "--run_dir", str(tmp_path / name)]) == 0
    one, two = (lines(tmp_path / name).pairs("train/loss") for name in ("one", "two"))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-5)
