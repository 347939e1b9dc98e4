"""Attention masks that open step by step, and what is trained meanwhile."""

from types import SimpleNamespace

import pytest
import torch

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import fold
from lit_small_lm.nn.attention import Attention
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.plugin import Batch, Dims, Specials
from lit_small_lm.training.callbacks.annealing import AttentionAnnealing
from lit_small_lm.training.diffusion import DiffusionLM

SPECIALS = Specials(11, end=0, pad=1, mask=2)


def batch():
    tokens = torch.randint(3, 11, (4, 9), generator=torch.Generator().manual_seed(0))
    index = torch.arange(4)
    return Batch(
        tokens, torch.tensor([[0] * 4 + [1] * 5]).repeat(4, 1) + 2 * index.unsqueeze(1), None, index, index, SPECIALS
    )


def test_the_share_follows_from_the_step():
    annealing = AttentionAnnealing(steps=0.5)
    assert [annealing.ahead(step, 8) for step in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert [AttentionAnnealing(steps=2).ahead(step, 8) for step in range(3)] == [0, 0.5, 1]
    module = DiffusionLM()
    trainer = SimpleNamespace(global_step=1, max_steps=8)
    annealing.on_train_batch_start(trainer, module, None, 0)
    assert module.objective == MaskedDiffusion(ahead=0.25) and module.noted == {"ahead": 0.25}
    assert module.held_out == MaskedDiffusion()


@pytest.mark.parametrize("at", ["own", "before"])
def test_an_annealed_question_is_the_masked_one_under_another_view(at):
    plain = MaskedDiffusion(logits_at=at).query(batch(), (5, 7))
    query = MaskedDiffusion(logits_at=at, ahead=0.3).query(batch(), (5, 7))
    for field in ("tokens", "targets", "weights", "scored", "count"):
        assert torch.equal(getattr(query, field), getattr(plain, field))
    assert torch.equal(query.visibility.dense(), plain.visibility.annealed(0.3, fold("ahead", 5, 7)).dense())
    assert not torch.equal(
        query.visibility.dense(), MaskedDiffusion(ahead=0.3).query(batch(), (5, 8)).visibility.dense()
    )
    open_ = MaskedDiffusion(logits_at=at, ahead=1.0).query(batch(), (5, 7))
    assert torch.equal(open_.visibility.dense(), plain.visibility.dense())


def test_held_out_text_and_samplers_see_everything():
    objective = MaskedDiffusion(ahead=0.0)
    assert objective.measured(batch(), (0, 0)).query.visibility.kind == "bidirectional"
    assert objective.decoding() == MaskedDiffusion().decoding()


def test_what_is_not_seen_changes_nothing():
    """With nothing ahead, a later token is felt nowhere before it, Canon layers included."""
    torch.manual_seed(0)
    dims = Dims(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12)
    net = Backbone(BackboneSpec(canon_at="ABCD"), dims, 11).double().eval()
    query = MaskedDiffusion(ahead=0.0).query(batch(), (0, 0))
    other = query.tokens.clone()
    other[:, -1] = 3 + (other[:, -1] - 2) % 8
    found, changed = (net(tokens, query.context()) for tokens in (query.tokens, other))
    assert torch.equal(found[:, :-1], changed[:, :-1]) and not torch.equal(found[:, -1], changed[:, -1])


def test_what_cannot_be_annealed_is_refused():
    with pytest.raises(RequestError, match="model.objective is BlockDiffusion; allowed: MaskedDiffusion"):
        AttentionAnnealing().setup(None, DiffusionLM(objective=BlockDiffusion()), "fit")
    for steps in (0, -1, 1.5, float("nan")):
        with pytest.raises(RequestError, match="AttentionAnnealing.steps"):
            AttentionAnnealing(steps=steps)


def test_a_part_that_says_it_cannot_is_refused(monkeypatch):
    monkeypatch.setattr(Attention, "kinds", ("causal", "bidirectional"))
    module = DiffusionLM(BackboneSpec(layer=LayerSpec()))
    with pytest.raises(RequestError, match="does not go with an annealed objective; it honours: causal, bid"):
        AttentionAnnealing().setup(None, module, "fit")


def test_an_annealed_run(tiny, tmp_path, lines):
    argv = ["fit", *tiny, "--model", "DiffusionLM", "--trainer.callbacks", "AttentionAnnealing"]
    argv += ["--trainer.callbacks.steps", "6", "--trainer.max_steps", "9", "--run_dir", str(tmp_path / "run")]
    assert main(argv) == 0
    shares = [share for _, share in lines(tmp_path / "run").pairs("train/ahead")]
    assert shares == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 1, 1])
    record = read(checkpoints_in(tmp_path / "run")[0])["lit_small_lm"]["objective"]
    assert record == MaskedDiffusion().to_dict()
