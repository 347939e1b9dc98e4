"""Routers against their formulas: who is chosen, with which weight, what it costs, and what is counted."""

import math

import pytest
import torch

from lit_small_lm.context import Context, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.routers import SigmoidRouter, SoftmaxRouter
from lit_small_lm.plugin import Dims, Site

B, T, D, E = 3, 5, 8, 6
SITE = Site(Dims(dim=D, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, hidden=12), 4, "ffn")
H = torch.randn(B * T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[0, 0, 0, 1, 1], [2, 2, -1, -1, -1], [-1] * 5])


def built(spec, n_experts=E, dtype=torch.float64):
    torch.manual_seed(1)
    router = spec.build(SITE, n_experts).to(dtype)
    torch.nn.init.normal_(router.proj.weight)
    return router


def context(docs=None):
    return Context(Visibility.rows(torch.zeros(B, T), docs))


def routed(router, h=H, docs=None):
    ctx = context(docs)
    return router(h, ctx), ctx.trace


def value(record, name):
    return record[name, SITE.layer].item()


# -------------------------------------------------------------------------------------------------------------- softmax
@pytest.mark.parametrize("normalise", ["all", "chosen"])
@pytest.mark.parametrize("top_k", [1, 3])
def test_softmax_takes_the_likeliest(normalise, top_k):
    router = built(SoftmaxRouter(top_k=top_k, normalise=normalise))
    (experts, weights), _ = routed(router)
    for row, position in enumerate(H):
        scores = (router.proj.weight @ position).softmax(0)
        best = sorted(range(E), key=lambda e: -scores[e].item())[:top_k]
        assert experts[row].tolist() == best
        total = scores[best].sum() if normalise == "chosen" else 1.0
        torch.testing.assert_close(weights[row], scores[best] / total, rtol=1e-12, atol=0)


def test_balance_and_z_losses_are_their_formulas():
    router = built(SoftmaxRouter(top_k=2, balance_loss=0.3, z_loss=0.2))
    (experts, _), trace = routed(router)
    logits = H @ router.proj.weight.T
    share = torch.stack([(experts == e).any(1).double().mean() for e in range(E)])
    balance = E / 2 * (share * logits.softmax(-1).mean(0)).sum().item()
    assert value(trace.losses, "balance_loss") == pytest.approx(0.3 * balance, rel=1e-12)
    assert value(trace.metrics, "balance") == pytest.approx(balance, rel=1e-12)
    squares = logits.logsumexp(-1).square().mean().item()
    assert value(trace.losses, "router_z_loss") == pytest.approx(0.2 * squares, rel=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_even_routing_has_a_balance_of_one(top_k):
    router = built(SoftmaxRouter(top_k=top_k, balance_loss=0.25))
    with torch.no_grad():
        router.proj.weight.zero_()
    _, trace = routed(router)
    assert value(trace.losses, "balance_loss") == pytest.approx(0.25, rel=1e-12)  # whoever wins the ties: P is even
    assert value(trace.losses, "router_z_loss") == pytest.approx(0.001 * math.log(E) ** 2, rel=1e-12)


def test_a_weight_of_zero_is_no_loss_but_still_a_metric():
    _, trace = routed(built(SoftmaxRouter(balance_loss=0, z_loss=0)))
    assert trace.losses == {}
    assert value(trace.metrics, "balance") > 0
    assert not any(metric.requires_grad for metric in trace.metrics.values())


def test_nothing_is_recorded_outside_training():
    for spec in (SoftmaxRouter(), SigmoidRouter(top_k=2)):
        _, trace = routed(built(spec).eval())
        assert (trace.losses, trace.metrics, trace.tallies) == ({}, {}, {})


@pytest.mark.parametrize("spec", [SoftmaxRouter(z_loss=0.1), SigmoidRouter(top_k=2)], ids=["softmax", "sigmoid"])
def test_padding_counts_nowhere(spec):
    """As if the padding were not there; other values in it change nothing."""
    router = built(spec)
    _, padded = routed(router, docs=PADDED)
    other = H.clone()
    other[PADDED.flatten() < 0] = torch.randn(D, dtype=torch.float64)
    for record in ("losses", "metrics", "tallies"):
        torch.testing.assert_close(getattr(routed(router, other, PADDED)[1], record), getattr(padded, record))
    assert sum(padded.tallies.get(SITE.address, torch.tensor([14]))) == 7 * 2
    if isinstance(spec, SoftmaxRouter):
        kept = H[PADDED.flatten() >= 0]
        ctx = Context(Visibility.rows(torch.zeros(1, len(kept))))
        router(kept, ctx)
        torch.testing.assert_close(padded.losses, ctx.trace.losses)
        torch.testing.assert_close(padded.metrics, ctx.trace.metrics)


# -------------------------------------------------------------------------------------------------------------- sigmoid
@pytest.mark.parametrize("normalise", ["none", "chosen"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_sigmoid_scores_each_expert_by_itself(normalise, scale):
    router = built(SigmoidRouter(top_k=3, normalise=normalise, scale=scale))
    (experts, weights), _ = routed(router)
    for row, position in enumerate(H):
        scores = torch.sigmoid(router.proj.weight @ position)
        best = sorted(range(E), key=lambda e: -scores[e].item())[:3]
        assert experts[row].tolist() == best
        total = scores[best].sum() if normalise == "chosen" else 1.0
        torch.testing.assert_close(weights[row], scale * scores[best] / total, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n_groups", "top_groups", "n_experts"), [(4, 2, 12), (3, 1, 6), (6, 3, 6)])
def test_groups_are_chosen_by_the_sum_of_their_best_two(n_groups, top_groups, n_experts):
    router = built(SigmoidRouter(top_k=2, n_groups=n_groups, top_groups=top_groups), n_experts)
    (experts, _), _ = routed(router)
    size = n_experts // n_groups
    for row, position in enumerate(H):
        scores = torch.sigmoid(router.proj.weight @ position).tolist()
        groups = [sorted(scores[g * size : (g + 1) * size], reverse=True)[:2] for g in range(n_groups)]
        best = sorted(range(n_groups), key=lambda g: -sum(groups[g]))[:top_groups]
        reach = [e for e in range(n_experts) if e // size in best]
        assert experts[row].tolist() == sorted(reach, key=lambda e: -scores[e])[:2]


def test_the_bias_is_for_the_choice_alone():
    """A closed group stays closed however low the open ones are, and weights are the unbiased scores."""
    router = built(SigmoidRouter(top_k=2, n_groups=3, top_groups=1, normalise="none"))
    router.bias.copy_(torch.tensor([-9.0, -9, -8, -8, -9, -9]))
    (experts, weights), _ = routed(router)
    assert experts.sort(1).values.tolist() == [[2, 3]] * (B * T)
    torch.testing.assert_close(weights, torch.sigmoid(H @ router.proj.weight.T).gather(1, experts))
    assert "bias" not in dict(router.named_parameters())
    assert list(router.state_dict()) == ["bias", "proj.weight"]


def test_the_balance_loss_is_that_of_each_row():
    router = built(SigmoidRouter(top_k=2, balance_loss=0.5))
    (experts, _), trace = routed(router, docs=PADDED)
    scores, found = torch.sigmoid(H @ router.proj.weight.T), []
    scores = (scores / scores.sum(1, keepdim=True)).unflatten(0, (B, T))
    for row, length in ((0, 5), (1, 2)):  # the third row is padding
        mine = experts.unflatten(0, (B, T))[row, :length]
        share = torch.stack([(mine == e).any(1).double().mean() for e in range(E)])
        found.append(E / 2 * (share * scores[row, :length].mean(0)).sum().item())
    assert value(trace.losses, "balance_loss") == pytest.approx(0.5 * sum(found) / 2, rel=1e-12)


def test_the_bias_moves_by_one_rate_towards_what_is_used_less():
    router = built(SigmoidRouter(top_k=2, bias_rate=0.125))
    (experts, _), trace = routed(router)
    tally = trace.tallies[SITE.address]
    assert tally.tolist() == [(experts == e).sum().item() for e in range(E)]
    router.after_step(torch.tensor([5, 0, 2, 1, 2, 2]))
    assert router.bias.tolist() == [-0.125, 0.125, 0, 0.125, 0, 0]  # the mean is 2
    router.after_step(torch.tensor([0, 0, 12, 0, 0, 0]))
    assert router.bias.tolist() == [0, 0.25, -0.125, 0.25, 0.125, 0.125]
    router.reset_moving()
    assert not router.bias.any()


def test_a_rate_of_zero_tallies_nothing():
    assert routed(built(SigmoidRouter(top_k=2, bias_rate=0)))[1].tallies == {}


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str)
def test_the_bias_is_never_coarser_than_its_steps(dtype, kept):
    router = built(SigmoidRouter(top_k=2), dtype=dtype)
    assert (router.proj.weight.dtype, router.bias.dtype) == (dtype, kept)


def test_loads_even_out_on_data_that_does_not_change():
    """The busiest expert's load over the mean, before and after, with a bias that moves and one that does not."""
    h, found = torch.randn(300, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), {}
    for rate in (0.0, 0.02):
        router = built(SigmoidRouter(top_k=2, bias_rate=rate))
        for _ in range(60):
            ctx = Context(Visibility.rows(h[None, :, 0]))
            router(h, ctx)
            for tally in ctx.trace.tallies.values():
                router.after_step(tally)
        found[rate] = value(ctx.trace.metrics, "load_imbalance")
    assert found[0.02] < 1.1 < 1.2 < found[0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_groups": 4}, "router.n_groups: 4 does not divide the 6 experts"),
        ({"n_groups": 2, "top_groups": 3}, "router.top_groups: 3; allowed: at most n_groups 2"),
        ({"n_groups": 3, "top_k": 3}, "router.top_k: 3; allowed: at most the 2 experts of top_groups"),
    ],
)
def test_groups_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        SigmoidRouter(**{"top_k": 2, **settings}).build(SITE, E)


# -------------------------------------------------------------------------------------------------------------- metrics
def test_metrics_of_a_known_load():
    """Every position goes to experts 0 and 1, to the first with the larger weight."""
    router = built(SoftmaxRouter(top_k=2, normalise="chosen"))
    with torch.no_grad():
        router.proj.weight.zero_()
        router.proj.weight[0, 0], router.proj.weight[1, 0] = 4.0, 2.0
    h = torch.zeros_like(H)
    h[:, 0] = 1.0
    _, trace = routed(router, h)
    assert value(trace.metrics, "load_imbalance") == pytest.approx(E / 2)
    assert value(trace.metrics, "dead_experts") == pytest.approx(4 / 6)
    assert value(trace.metrics, "load_entropy") == pytest.approx(math.log(2) / math.log(6))
    assert value(trace.metrics, "top_weight") == pytest.approx(1 / (1 + math.exp(-2)))


def test_the_range_of_the_bias_is_logged_as_it_was():
    router = built(SigmoidRouter(top_k=2))
    router.bias[2], router.bias[5] = 0.5, -0.25
    _, trace = routed(router)
    router.bias.zero_()
    assert value(trace.metrics, "bias_range") == 0.75


def test_a_single_expert_is_no_division_by_zero():
    _, trace = routed(built(SoftmaxRouter(top_k=1), 1))
    assert all(math.isfinite(metric.item()) for metric in trace.metrics.values())


# ------------------------------------------------------------------------------------------------------------ precision
@pytest.mark.parametrize("spec", [SoftmaxRouter(), SigmoidRouter(top_k=2)], ids=["softmax", "sigmoid"])
def test_scores_are_float32_or_better(spec):
    coarse = built(spec, dtype=torch.bfloat16)
    h = H.bfloat16()
    (experts, weights), _ = routed(coarse, h)
    assert weights.dtype == torch.float32
    exact = built(spec, dtype=torch.float64)
    with torch.no_grad():
        exact.proj.weight.copy_(coarse.proj.weight)
    (wanted, fine), _ = routed(exact, h.double())
    assert torch.equal(experts, wanted)
    assert fine.dtype == torch.float64
    torch.testing.assert_close(weights.double(), fine, rtol=1e-5, atol=1e-6)
