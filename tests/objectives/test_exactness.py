"""Losses of diffusion objectives against the bound written out: all masks, all orders, all strings, in float64."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec, LayerSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.nn.shortconv import ShortConv
from lit_small_lm.objectives import masking
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.objectives.noise import ClippedNoise, CosineNoise, LinearNoise, LogLinearNoise, PolynomialNoise
from lit_small_lm.plugin import Batch, Dims, Specials

VOCAB, MASK, START = 5, 2, 0
REAL = [index for index in range(VOCAB) if index != MASK]
SPECIALS = Specials(VOCAB, end=START, pad=1, mask=MASK)
TINY = Dims(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12)
NOISES = [LinearNoise(), CosineNoise(), PolynomialNoise(power=2), PolynomialNoise(power=3)]
LENGTH = 3
CANON = BackboneSpec(canon_at="ABCD")
CONVOLUTIONS = BackboneSpec(
    layer=LayerSpec(mixer=ShortConv()),
    more_layers={"attention": LayerSpec(canon_at="AC")},
    pattern=("layer", "attention"),
)
OBJECTIVES = {
    "masked": MaskedDiffusion(),
    "masked, before": MaskedDiffusion(logits_at="before"),
    "blocks": BlockDiffusion(block_size=2),
    "blocks, before": BlockDiffusion(block_size=2, logits_at="before"),
    "blocks of three": BlockDiffusion(block_size=3),
}


def network(spec=BackboneSpec(), seed=0, vocab=VOCAB):
    torch.manual_seed(seed)
    net = Backbone(spec, TINY, vocab).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


NET = network(CANON)


def batch_of(texts, docs=None, loss_mask=None):
    """Rows that begin with the start token and go on with these targets."""
    tokens = torch.cat([torch.full((len(texts), 1), START), torch.as_tensor(texts)], dim=1)
    docs = torch.zeros_like(tokens) if docs is None else docs
    rows = torch.arange(len(tokens))
    return Batch(tokens, docs, loss_mask, rows, rows, SPECIALS)


def restored(net, objective, text, masked):
    """{place: nats} of the masked places (of `text`, from 0) of a text, asked the long way: block by block behind the
    clean blocks before it, without a cache, and with all logits."""
    size = getattr(objective, "block_size", None) or len(text) + 1
    clean, found = torch.tensor([START, *text]), {}
    for start in range(0, len(text) + 1, size):
        stop = min(start + size, len(text) + 1)
        now = clean[:stop].clone()
        places = [place for place in masked if start <= place + 1 < stop]
        now[[place + 1 for place in places]] = MASK
        view = Visibility.rows(now.unsqueeze(0), kind="block", block_size=size)
        if objective.decoding().clean == "causal":
            view = dataclasses.replace(view, finished=start)
        with torch.no_grad():
            logits = net(now.unsqueeze(0), Context(view))[0]
        logits[:, MASK] = -math.inf
        back = 1 if objective.logits_at == "before" else 0
        for place in places:
            found[place] = -torch.log_softmax(logits[place + 1 - back], -1)[text[place]].item()
    return found


def units(objective, length):
    """Places that are masked together, block by block."""
    size = getattr(objective, "block_size", None) or length + 1
    return [[i for i in range(length) if (i + 1) // size == block] for block in range((length + size) // size)]


def subsets(places):
    return [chosen for count in range(1, len(places) + 1) for chosen in itertools.combinations(places, count)]


def bound(net, objective, text, given=0):
    """The sum over units, and over the ways to mask k of L places behind those given, of their nats over k times the
    number of ways."""
    total = 0.0
    for places in units(objective, len(text)):
        places = [place for place in places if place >= given]
        for chosen in subsets(places):
            share = len(chosen) * math.comb(len(places), len(chosen))
            total += sum(restored(net, objective, text, chosen).values()) / share
    return total


def losses(net, objective, texts, key=(0, 0)):
    """What the objective makes of each text: the weighted sum of nats, the mean over views."""
    query = objective.query(batch_of(texts), key)
    with torch.no_grad():
        nll = net(query.tokens, query.context(), query.targets, query.scored)
    views = len(query.tokens) // len(texts)
    row = query.scored // query.tokens.shape[1] // views
    return torch.zeros(len(texts), dtype=torch.float64).index_add(0, row, nll * query.weights / views)


@pytest.fixture
def choose(monkeypatch):
    """`choose(times, draws)`: every unit of row r has the time times[r], and the targets of row r the draws[r]."""

    def fixed(times, draws):
        each, rows = torch.tensor(times, dtype=torch.float64), torch.tensor(draws, dtype=torch.float64)
        rows = torch.nn.functional.pad(rows, (1, 0))  # the start token has a draw, too, which must not count
        monkeypatch.setattr(masking, "times", lambda key, slots, units: each.unsqueeze(1).expand(units.shape))
        monkeypatch.setattr(masking, "uniform", lambda key, slots, column: rows)

    return fixed


TEXT = [3, 1, 4]


def every_time_and_mask():
    """Nodes and weights of an exact quadrature over the time, with each of the ways to mask a text."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    ways = list(itertools.product([True, False], repeat=LENGTH))
    return [(*node, way) for node in zip((nodes + 1) / 2, weights / 2, strict=True) for way in ways]


def mean_over_times_and_masks(net, objective, choose):
    """The expected loss, and of each way its time, its chance with weight and its masked places."""
    times, weights, ways = zip(*every_time_and_mask(), strict=True)
    choose(times, [[0.0 if hit else 1.0 for hit in way] for way in ways])
    alphas = objective.noise.alpha(torch.tensor(times)).tolist()
    chances = [
        weight * math.prod(1 - alpha if hit else alpha for hit in way)
        for weight, alpha, way in zip(weights, alphas, ways, strict=True)
    ]
    return (losses(net, objective, [TEXT] * len(times)) * torch.tensor(chances)).sum().item(), times, chances, ways


# ------------------------------------------------------------------------------------------------------- the estimators
@pytest.mark.parametrize("estimator", ["stratified", "complementary"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_the_mean_over_times_and_masks_is_the_bound(noise, name, estimator, choose):
    objective = dataclasses.replace(OBJECTIVES[name], noise=noise, estimator=estimator)
    total, *_ = mean_over_times_and_masks(NET, objective, choose)
    assert total == pytest.approx(bound(NET, objective, TEXT), rel=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_over_counts_and_subsets_is_the_bound(name, choose):
    """Times at the middle of every count of every unit's size, and every order of the draws."""
    objective = dataclasses.replace(OBJECTIVES[name], estimator="count")
    steps = math.lcm(*(len(places) for places in units(objective, LENGTH) if places))
    cases = list(itertools.product(range(steps), itertools.permutations([0.1, 0.2, 0.3])))
    choose([(step + 0.5) / steps for step, _ in cases], [draws for _, draws in cases])
    total = losses(NET, objective, [TEXT] * len(cases)).mean().item()
    assert total == pytest.approx(bound(NET, objective, TEXT), rel=1e-10)


@pytest.mark.parametrize("name", [*OBJECTIVES, "joint"])
def test_behind_a_prompt_the_bound_is_that_of_the_response(name, choose):
    """The first two tokens are given: they are not among the ways to mask, and lie in a block with some that are."""
    objective, text, given = {**OBJECTIVES, "joint": JointDiffusion(block_size=2)}[name], [1, 4, *TEXT], 2
    sizes = [sum(place >= given for place in places) for places in units(objective, len(text))]
    steps = math.lcm(*(size for size in sizes if size))
    cases = list(itertools.product(range(steps), itertools.permutations([0.1, 0.2, 0.3])))
    choose([(step + 0.5) / steps for step, _ in cases], [[0.0, 0.0, *draws] for _, draws in cases])
    response = (torch.arange(len(text)) >= given).expand(len(cases), -1)
    query, columns, _ = objective.measured(batch_of([text] * len(cases), loss_mask=response), (0, 0))
    with torch.no_grad():
        nll = net_nats(query) * query.weights
    assert (columns % (len(text) + 1) > given).all(), "a column further: the beginning"
    assert nll.sum().item() / len(cases) == pytest.approx(bound(NET, objective, text, given), rel=1e-10)


def net_nats(query):
    return NET(query.tokens, query.context(), query.targets, query.scored)


def test_log_linear_noise_leaves_out_the_last_epsilon(choose):
    """Masked with (1 - e) t and weighed 1 / t: the mean over rates from 0 to 1 - e of 1 / rate, not up to 1."""
    objective = MaskedDiffusion(noise=LogLinearNoise(epsilon=0.1))
    total, times, chances, ways = mean_over_times_and_masks(NET, objective, choose)
    wanted = sum(
        chance / time * sum(restored(NET, objective, TEXT, [i for i, hit in enumerate(way) if hit]).values())
        for time, chance, way in zip(times, chances, ways, strict=True)
    )
    assert total == pytest.approx(wanted, rel=1e-10)
    assert wanted < bound(NET, objective, TEXT) * 0.95


@pytest.mark.parametrize("estimator", ["stratified", "independent", "count", "complementary"])
def test_drawn_masks_average_to_the_bound(estimator):
    """Real draws, many of them, within four standard errors; what the times above were fixed to is drawn here."""
    objective = BlockDiffusion(block_size=3, estimator=estimator)
    wanted = bound(NET, objective, [3, 1, 4, 0])
    means = [losses(NET, objective, [[3, 1, 4, 0]] * 512, (1, step)).mean().item() for step in range(8)]
    spread = np.std(means, ddof=1) / math.sqrt(len(means))
    assert abs(np.mean(means) - wanted) < 4 * spread + 1e-9, (np.mean(means), wanted, spread)


def scatter(estimator, nats, rows=8, steps=60):
    """Standard deviation over steps of the loss per token of a network that says so many nats at mask rate t."""
    objective, losses = MaskedDiffusion(estimator=estimator), []
    for step in range(steps):
        weights = objective.query(batch_of([[3, 1, 4, 0] * 64] * rows), (0, step)).weights
        losses.append((weights * nats(1 / weights)).sum().item() / rows / 256)
    return np.std(losses)


def test_stratified_times_scatter_less_than_independent_ones():
    rising = {estimator: scatter(estimator, lambda t: 1 + 9 * t) for estimator in ("independent", "stratified")}
    assert rising["stratified"] < 0.3 * rising["independent"]


def test_counting_does_not_scatter_where_every_token_costs_the_same():
    assert scatter("count", lambda t: 1.0, steps=10) < 1e-12
    assert scatter("stratified", lambda t: 1.0, steps=10) > 1e-3


# ------------------------------------------------------------------------------------------------- what the bound means
@pytest.mark.parametrize("name", ["masked", "masked, before"])
def test_the_bound_is_the_mean_over_all_orders(name):
    objective, losses = OBJECTIVES[name], []
    for order in itertools.permutations(range(LENGTH)):
        losses.append(sum(restored(NET, objective, TEXT, order[step:])[order[step]] for step in range(LENGTH)))
    assert np.mean(losses) == pytest.approx(bound(NET, objective, TEXT), rel=1e-10)


@pytest.mark.parametrize("at", ["own", "before"])
def test_probabilities_of_all_strings_sum_to_one_for_blocks_of_one(at):
    objective = BlockDiffusion(block_size=1, logits_at=at)
    assert objective.bound == "exact"
    total = sum(math.exp(-bound(NET, objective, list(text))) for text in itertools.product(REAL, repeat=LENGTH))
    assert total == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", ["masked", "masked, before"])
def test_probabilities_of_all_strings_fall_short_of_one_by_the_bound_s_gap(name):
    """Drawing in a random order gives a distribution; the bound is above its negative log-likelihood."""
    objective, true, bounded = OBJECTIVES[name], [], []
    orders = list(itertools.permutations(range(2)))
    for text in itertools.product(REAL, repeat=2):
        text = list(text)
        by_order = [
            math.exp(-sum(restored(NET, objective, text, order[step:])[order[step]] for step in range(2)))
            for order in orders
        ]
        true.append(np.mean(by_order))
        bounded.append(math.exp(-bound(NET, objective, text)))
        assert bounded[-1] <= true[-1]
    assert sum(true) == pytest.approx(1, abs=1e-10)
    gap = sum(one - other for one, other in zip(true, bounded, strict=True))
    assert gap > 1e-4
    assert sum(bounded) == pytest.approx(1 - gap, abs=1e-10)


def test_one_target_is_exact_with_one_draw():
    for objective in (MaskedDiffusion(estimator="count"), BlockDiffusion(block_size=3, estimator="count")):
        for step in range(3):
            found = losses(NET, objective, [[4]], (0, step)).item()
            assert found == pytest.approx(restored(NET, objective, [4], [0])[0], rel=1e-12)


# ----------------------------------------------------------------------------------------- one objective inside another
def packed(rows=3, time=13, seed=3):
    """Rows of several documents, of padding, and of a separate position without a document."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 11, (rows, time + 1), generator=draw)
    docs = torch.tensor([[0] * 4 + [1] * 7 + [2] * 3, [3] * 14, [4] * 6 + [-1] + [5] * 5 + [-1] * 2])[:rows]
    opens = torch.nn.functional.pad(docs, (1, 0), value=-2)[:, :-1] != docs
    tokens[opens] = START
    index = torch.arange(rows)
    return Batch(tokens, docs, docs[:, :-1] >= 0, index, index, Specials(11, end=START, pad=1, mask=MASK))


def by_target(net, objective, batch, key=(0, 0)):
    """(place on the texts, nats, weight) of every scored target."""
    query = objective.query(batch, key)
    nll = net(query.tokens, query.context(), query.targets, query.scored)
    return query, nll


@pytest.mark.parametrize("spec", [BackboneSpec(), CANON, CONVOLUTIONS], ids=["attention", "Canon", "convolutions"])
@pytest.mark.parametrize("at", ["own", "before"])
def test_one_block_as_long_as_a_row_is_masked_diffusion(spec, at):
    net, batch = network(spec, vocab=11), packed()
    for size in (17, 100):
        one, other = BlockDiffusion(block_size=size, logits_at=at), MaskedDiffusion(logits_at=at)
        (query, nll), (wanted, nll_wanted) = (by_target(net, objective, batch, (0, 5)) for objective in (one, other))
        assert query.tokens.shape == wanted.tokens.shape, "the clean half is left out"
        assert torch.equal(query.targets, wanted.targets)
        torch.testing.assert_close(nll, nll_wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(query.weights, wanted.weights)


@pytest.mark.parametrize("spec", [BackboneSpec(), CANON, CONVOLUTIONS], ids=["attention", "Canon", "convolutions"])
def test_blocks_of_one_that_are_masked_are_next_token_prediction(spec):
    """Read one position before, with everything masked: target by target, and with it the loss and its gradient."""
    net, batch = network(spec, vocab=11), packed()
    objective = BlockDiffusion(block_size=1, noise=ClippedNoise(low=1, high=1), logits_at="before")
    query, nll = by_target(net, objective, batch)
    plain = NextToken().query(batch, (0, 0))
    logits = net(plain.tokens, Context(plain.visibility))
    logits = logits.index_fill(-1, torch.tensor(MASK), -torch.inf)  # the mask is no token of the text
    wanted = -torch.log_softmax(logits, -1).gather(-1, plain.targets.unsqueeze(-1)).squeeze(-1)[plain.weights > 0]
    assert torch.equal(query.targets, plain.targets[plain.weights > 0])
    assert torch.equal(query.weights, torch.ones_like(query.weights))
    assert torch.equal(query.count, plain.count)
    torch.testing.assert_close(nll, wanted, rtol=1e-12, atol=1e-12)
    parameters = list(net.parameters())
    found, expected = (torch.autograd.grad(part.sum(), parameters) for part in (nll, wanted))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", [BackboneSpec(), CANON, CONVOLUTIONS], ids=["attention", "Canon", "convolutions"])
@pytest.mark.parametrize("at", ["own", "before"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 14])
def test_one_pass_equals_block_by_block_with_a_cache(size, at, spec):
    """Packed documents at once against each by itself, as it would be decoded: noisy blocks behind clean ones."""
    net, batch = network(spec, vocab=11), packed()
    objective = BlockDiffusion(block_size=size, logits_at=at)
    query, nll = by_target(net, objective, batch, (0, 2))
    texts, found = masking.lay_out(batch), []
    (view,) = masking.draw(texts, (0, 2), objective.noise, objective.estimator, size)
    noisy = texts.tokens.masked_fill(view.masked, MASK)
    for row in range(3):
        for doc in texts.visibility.doc_ids[row].unique_consecutive():
            own = (texts.visibility.doc_ids[row] == doc).nonzero().flatten()
            if doc >= 0:
                found += alone(net, objective, *(part[row, own] for part in (noisy, texts.tokens, view.masked)))
    torch.testing.assert_close(nll, torch.tensor(found, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def alone(net, objective, noisy, clean, masked):
    """Nats of the masked tokens of one document (T,), decoded block by block."""
    size, cache, carried, found = objective.block_size, Cache(len(clean)), None, []
    for start in range(0, len(clean), size):
        now = slice(start, start + size)
        view = Visibility.rows(clean[now].unsqueeze(0), kind="block", start=start, block_size=size)
        own = net(noisy[now].unsqueeze(0), Context(view, cache.peek()))[0]
        finished = net(clean[now].unsqueeze(0), Context(view, cache))[0]
        if objective.logits_at == "before":
            own = torch.cat([own[:1] if carried is None else carried, own[:-1]])
            carried = finished[-1:]
        own[:, MASK] = -math.inf
        nats = -torch.log_softmax(own, -1).gather(1, clean[now].unsqueeze(1)).squeeze(1)
        found += nats[masked[now]].tolist()
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_asking_about_masked_tokens_alone_gives_what_asking_about_all_gives(name):
    net = network(CANON, vocab=11)
    query, nll = by_target(net, OBJECTIVES[name], packed())
    logits = net(query.tokens, Context(query.visibility)).flatten(0, 1)[query.scored]
    logits = logits.index_fill(1, torch.tensor(MASK), -torch.inf)
    wanted = -torch.log_softmax(logits, -1).gather(1, query.targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(nll, wanted, rtol=1e-12, atol=1e-12)
