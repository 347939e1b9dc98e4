"""Loss terms beside the nats: weighted like them, in the gradient and in the log, and absent unless asked for."""

import dataclasses

import pytest
import torch
from torch import nn

from lit_small_lm.__main__ import main
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.checkpoint import checkpoints_in, read
from lit_small_lm.context import Context, Trace
from lit_small_lm.plugin import Batch, Specials
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.lit import AutoregressiveLM
from lit_small_lm.training.score import StepSums, mean_over_layers

SHAPE = FixedShape(dim=16, n_layers=1, n_heads=2)
WEIGHT = 0.01
PLUGIN = '''
"""A scheme that records something to be logged, and a loss."""

from dataclasses import dataclass

from torch import nn

from lit_small_lm.nn.mlp import GatedMLP


@dataclass(frozen=True, kw_only=True)
class Recorder(GatedMLP):
    """GatedMLP that records the number of its layer."""

    def build(self, site):
        return Recording(super().build(site), site.layer)


class Recording(nn.Module):
    def __init__(self, inner, layer):
        super().__init__()
        self.inner, self.layer = inner, layer

    def forward(self, h, ctx):
        ctx.trace.metrics["layer", self.layer] = h.new_tensor(float(self.layer))
        ctx.trace.losses["balance", self.layer] = h.new_tensor(0.5)
        ctx.trace.metrics["plain"] = h.new_tensor(3.0)
        return self.inner(h, ctx)
'''


def module(z_loss):
    torch.manual_seed(0)
    found = AutoregressiveLM(BackboneSpec(z_loss=z_loss), SHAPE)
    found.net = Backbone(found.backbone, found.dims, 31)
    with torch.no_grad():
        found.net.embed.weight.mul_(20)  # logits that are not all near zero
    return found


def batch(uneven):
    torch.manual_seed(1)
    tokens, mask = torch.randint(31, (3, 8)), torch.rand(3, 7) < 0.6
    return Batch(
        tokens,
        torch.zeros_like(tokens),
        mask if uneven else None,
        torch.arange(3),
        torch.arange(3),
        Specials(31, 0, 1, 2),
    )


@pytest.mark.parametrize("uneven", [False, True], ids=["every position", "some positions"])
def test_the_gradient_is_that_of_the_mean_over_counted_tokens(uneven):
    model, data = module(WEIGHT), batch(uneven)
    model.training_step(data, 0).backward()
    scale = model.sums.gradient_scale(lambda value, reduce_op: value) if model.sums.uneven else 1.0
    found = {name: p.grad * scale for name, p in model.net.named_parameters()}
    query = model.objective.query(data, (0, 0))
    twin = module(WEIGHT)
    logits = twin.net(query.tokens, Context(query.visibility))
    z = torch.logsumexp(logits, -1)
    each = z - logits.gather(-1, query.targets[..., None])[..., 0] + WEIGHT * z**2
    (each.mean() if query.weights is None else each[query.weights > 0].mean()).backward()
    for name, parameter in twin.net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("uneven", [False, True], ids=["every position", "some positions"])
def test_the_nats_stay_pure_and_the_term_is_summed_like_them(uneven):
    plain, model, data = module(0.0), module(WEIGHT), batch(uneven)
    plain.training_step(data, 0)
    model.training_step(data, 0)
    assert torch.equal(plain.sums.nats, model.sums.nats)
    assert plain.sums.terms == {}
    query = model.objective.query(data, (0, 0))
    z = torch.logsumexp(plain.net(query.tokens, Context(query.visibility)), -1)
    wanted = WEIGHT * (z**2 if query.weights is None else z[query.weights > 0] ** 2).sum()
    torch.testing.assert_close(model.sums.terms["z_loss"], wanted.double(), rtol=1e-5, atol=0)


class Pull(nn.Module):
    """A branch with an auxiliary loss: the mean square of what it hands on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, h, ctx):
        out = self.inner(h, ctx)
        ctx.trace.losses["pull", 0] = out.square().mean()
        return out


def test_an_auxiliary_loss_counts_as_the_tokens_of_its_batch_do():
    """Two batches of one step, where few positions count: neither is scaled by how few they are over all."""
    model, data = module(0.0), batch(uneven=True)
    model.net.layers[0].ffn = Pull(model.net.layers[0].ffn)
    other = dataclasses.replace(data, tokens=data.tokens.flip(1), loss_mask=torch.rand(3, 7) < 0.2)
    for part in (data, other):
        (model.training_step(part, 0) / 2).backward()  # as Lightning divides what it accumulates
    scale = model.sums.gradient_scale(lambda value, reduce_op: value)
    found = {name: p.grad * scale for name, p in model.net.named_parameters()}
    model.net.zero_grad()
    counts, nats, pulls = [], [], []
    for part in (data, other):
        query = model.objective.query(part, (0, 0))
        ctx = Context(query.visibility)
        nats.append((model.net(query.tokens, ctx, query.targets) * query.weights).sum())
        pulls.append(ctx.trace.losses["pull", 0])
        counts.append(query.count.sum())
    total = sum(counts)
    assert 0 < counts[1] < counts[0] < 21
    loss = sum(nats) / total + sum(pull * count / total for pull, count in zip(pulls, counts, strict=True))
    loss.backward()
    for name, parameter in model.net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_evaluation_asks_for_no_term():
    model, data = module(WEIGHT).eval(), batch(uneven=False)
    query = model.objective.query(data, (0, 0))
    ctx = Context(query.visibility)
    model.net(query.tokens, ctx, query.targets)
    assert ctx.trace.token_losses == {}


def test_scalars_are_averaged_over_layers_and_batches():
    trace, sums = Trace(), StepSums()
    trace.metrics = {("load", 0): torch.tensor(1.0), ("load", 1): torch.tensor(3.0)}
    trace.losses = {"balance": torch.tensor(0.25)}
    trace.tallies = {"here": torch.tensor([1, 2])}
    assert {k: v.item() for k, v in mean_over_layers(trace.metrics).items()} == {"load": 2.0}
    sums.note({"z_loss": torch.tensor(1.5)}, trace)
    sums.note({"z_loss": torch.tensor(0.5)}, trace)
    assert (sums.batches, sums.terms["z_loss"].item()) == (2, 2.0)
    assert {name: (total / sums.batches).item() for name, total in sums.scalars.items()} == {
        "load": 2.0,
        "balance": 0.25,
    }
    assert sums.tallies["here"].tolist() == [2, 4]
    assert trace.tallies["here"].tolist() == [1, 2]
    sums.clear()
    assert (sums.batches, sums.terms, sums.scalars, sums.tallies) == (0, {}, {}, {})


def test_terms_and_scalars_are_logged_for_every_step(tmp_path, tiny, lines):
    (tmp_path / "recorder.py").write_text(PLUGIN)
    extra = ["--plugins", str(tmp_path / "recorder.py"), "--model.backbone.layer.ffn", "Recorder"]
    extra += ["--model.backbone.z_loss", "0.001", "--trainer.accumulate_grad_batches", "2"]
    extra += ["--model.shape.n_layers", "2"]
    assert main(["fit", *tiny, *extra, "--trainer.max_steps", "4", "--run_dir", str(tmp_path / "run")]) == 0
    found = lines(tmp_path / "run")
    assert [step for step, _ in found.pairs("train/z_loss")] == [1, 2, 3, 4]
    # at the start all logits are near zero: the normaliser is the number of ids
    size = read(checkpoints_in(tmp_path / "run")[0])["lit_small_lm"]["specials"]["vocab_size"]
    first = found.pairs("train/z_loss")[0][1]
    assert first == pytest.approx(0.001 * torch.tensor(float(size)).log().item() ** 2, rel=0.02)
    assert {value for _, value in found.pairs("train/layer")} == {0.5}
    assert {value for _, value in found.pairs("train/balance")} == {0.5}
    assert {value for _, value in found.pairs("train/plain")} == {3.0}
