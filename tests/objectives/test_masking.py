"""What is masked, by whom it is decided, and what a masked token may know."""

import dataclasses

import pytest
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Cache, Context, Visibility
from lit_small_lm.objectives import masking
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.joint import JointDiffusion
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.objectives.noise import ClippedNoise, LinearNoise
from lit_small_lm.plugin import Batch, Dims, Specials

START, MASK, VOCAB = 0, 2, 11
SPECIALS = Specials(VOCAB, end=START, pad=1, mask=MASK)
TINY = Dims(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, hidden=12)
ESTIMATORS = ("stratified", "independent", "count", "complementary")
OBJECTIVES = {
    "masked": MaskedDiffusion(),
    "masked, before": MaskedDiffusion(logits_at="before"),
    "blocks": BlockDiffusion(block_size=3),
    "blocks, before": BlockDiffusion(block_size=3, logits_at="before"),
    "joint": JointDiffusion(block_size=3),
    "joint, before": JointDiffusion(block_size=3, logits_at="before"),
}


def batch(rows=8, time=12, **fields):
    draw = torch.Generator().manual_seed(4)
    tokens = torch.randint(3, VOCAB, (rows, time + 1), generator=draw)
    docs = (torch.arange(time + 1) // 7).repeat(rows, 1) + torch.arange(rows).unsqueeze(1) * 2
    tokens[:, [0, 7]] = START
    index = torch.arange(rows)
    return dataclasses.replace(Batch(tokens, docs, None, index, index, SPECIALS), **fields)


def rows_of(whole, index):
    fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
    return Batch(**{name: value[index] if torch.is_tensor(value) else value for name, value in fields.items()})


def network(spec=BackboneSpec(canon_at="ABCD")):
    torch.manual_seed(0)
    net = Backbone(spec, TINY, VOCAB).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


# ------------------------------------------------------------------------------------------------------------ the texts
def test_each_document_has_a_beginning_and_an_end_of_its_own():
    tokens = torch.tensor([[0, 5, 6, 0, 7, 0, 8], [0, 3, 4, 5, 0, 9, 1]])
    docs = torch.tensor([[4, 4, 4, 5, 5, 6, 6], [7, 7, 7, -1, 8, -1, -1]])
    rows = torch.arange(2)
    texts = masking.lay_out(Batch(tokens, docs, docs[:, :-1] >= 0, rows, rows, SPECIALS))
    assert texts.tokens.tolist() == [[0, 5, 6, 0, 0, 7, 0, 0, 8], [0, 3, 4, 5, 0, 9, 1, 1, 1]]
    assert texts.visibility.doc_ids.tolist() == [[4, 4, 4, 4, 5, 5, 5, 6, 6], [7, 7, 7, 7, 8, 8, -1, -1, -1]]
    assert texts.visibility.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert texts.open.int().tolist() == [[0, 1, 1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 1, 0, 0, 0]]


def test_documents_may_begin_with_a_token_of_their_own():
    texts = masking.lay_out(batch(specials=SPECIALS._replace(begin=9)))
    starts = texts.visibility.positions == 0
    assert (texts.tokens[starts] == 9).all()
    assert (texts.tokens[~starts] == batch().tokens[:, 1:].flatten()).all(), "ends stay ends"


def test_documents_are_filled_up_behind_their_ends():
    tokens = torch.tensor([[0, 5, 6, 0, 7, 0, 8], [0, 3, 4, 5, 0, 9, 0]])
    docs = torch.tensor([[4, 4, 4, 5, 5, 6, 6], [7, 7, 7, -1, 8, 8, 8]])
    rows, response = torch.arange(2), (docs[:, :-1] >= 0) & (docs[:, :-1] != 5)
    texts = masking.lay_out(Batch(tokens, docs, response, rows, rows, SPECIALS), 3)
    wanted = [[0, 5, 6, 0, 0, 0, 0, 7, 0, 0, 8], [0, 3, 4, 5, 0, 9, 0, 1, 1, 1, 1]]
    assert texts.tokens.tolist() == wanted, "to 6 and to 3; what is cut, or has three already, is not filled up"
    assert texts.open.int().tolist() == [[0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1], [0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0]]
    assert texts.counted.int().tolist() == [[0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0]]
    assert texts.ends[0].tolist() == [0, 1, 2, 3, 3, 3, 6, 7, 8, 9, 10]
    assert texts.visibility.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1]
    assert texts.visibility.doc_ids[0].tolist() == [4] * 6 + [5] * 3 + [6] * 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ends_that_fill_up_cost_their_document_and_are_no_tokens_of_it(name):
    """What a filled-up document costs is what the same document costs with those ends written out."""
    objective, net = dataclasses.replace(OBJECTIVES[name], filled_to=6), network()
    tokens = torch.tensor([[START, 5, 6, START]])
    row, docs = torch.zeros(1, dtype=torch.long), torch.zeros_like(tokens)
    filled = objective.measured(Batch(tokens, docs, None, row, row, SPECIALS), (0, 3))
    written = torch.nn.functional.pad(tokens, (0, 2), value=START)  # six positions
    plain = OBJECTIVES[name].measured(Batch(written, torch.zeros_like(written), None, row, row, SPECIALS), (0, 3))
    nats = [nats_at(net, estimate) for estimate in (filled, plain)]
    assert filled.query.count.item() == 3 and plain.query.count.item() == 5
    assert torch.allclose(nats[0][1:3], nats[1][1:3], rtol=1e-12)
    assert torch.allclose(nats[0][3], nats[1][3:].sum(), rtol=1e-12)
    assert not nats[0][4:].any()


def nats_at(net, estimate):
    query = estimate.query
    with torch.no_grad():
        nll = net(query.tokens, query.context(), query.targets, query.scored) * query.weights
    return torch.zeros(6, dtype=torch.float64).index_add(0, estimate.columns, nll)


@pytest.mark.parametrize("name", ["joint", "joint, before"])
def test_next_tokens_are_not_asked_behind_the_end(name):
    plain, filled = (
        dataclasses.replace(OBJECTIVES[name], diffusion_weight=0.0, filled_to=size).query(batch(), (0, 0))
        for size in (None, 12)
    )
    losses = [(network()(q.tokens, q.context(), q.targets, q.scored) * q.weights).sum() for q in (plain, filled)]
    assert torch.allclose(*losses, rtol=1e-12)
    assert torch.equal(plain.count, filled.count)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_prompt_is_never_masked_and_never_counts(name, estimator):
    """Fine-tuning on pairs of prompt and response: the loss mask marks the response."""
    response = torch.zeros(8, 12, dtype=torch.bool)
    response[:, 4:6], response[:, 9:] = True, True
    objective = dataclasses.replace(OBJECTIVES[name], estimator=estimator)
    seen = set()
    for step in range(20):
        query = objective.query(batch(loss_mask=response), (0, step))
        noisy = query.tokens[:, :14]  # 12 targets and the beginnings of two documents
        hidden = (noisy == MASK).any(0).nonzero().flatten().tolist()
        seen |= set(hidden)
        assert (query.count == 5).all()
        assert torch.isfinite(query.weights).all()
    assert seen == {5, 6, 11, 12, 13}, "columns of the response, one further for each beginning before them"


def test_padding_rows_cost_nothing():
    whole = batch(doc_ids=torch.full((8, 13), -1), loss_mask=torch.zeros(8, 12, dtype=torch.bool))
    for objective in OBJECTIVES.values():
        query = objective.query(whole, (0, 0))
        nll = network()(query.tokens, query.context(), query.targets, query.scored)
        assert query.targets.numel() == 0 and not query.count.any()
        assert (nll * query.weights).sum() == 0


# ------------------------------------------------------------------------------------------- noise is a function of ...
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_noise_does_not_depend_on_how_a_batch_is_shared_out(name, estimator):
    """On accumulation, processes and the order of rows; only on key and slot."""
    objective, whole = dataclasses.replace(OBJECTIVES[name], estimator=estimator), batch()
    views = 2 if estimator == "complementary" else 1
    wanted = objective.query(whole, (3, 5)).tokens.unflatten(0, (8, views))
    for index in (torch.arange(0, 8, 2), torch.tensor([5]), torch.tensor([7, 0, 3])):
        part = objective.query(rows_of(whole, index), (3, 5))
        assert torch.equal(part.tokens.unflatten(0, (len(index), views)), wanted[index])


def test_noise_depends_on_seed_step_and_slot_and_not_on_the_text():
    masked = {}
    for name, (fields, key) in {
        "here": ({}, (0, 0)),
        "other text": ({"tokens": batch().tokens.flip(0), "sample_ids": torch.arange(8) + 100}, (0, 0)),
        "other seed": ({}, (1, 0)),
        "other step": ({}, (0, 1)),
        "other slot": ({"slots": torch.arange(8) + 8}, (0, 0)),
    }.items():
        (view,) = masking.draw(masking.lay_out(batch(**fields)), key, LinearNoise(), "stratified")
        masked[name] = view.masked
    assert torch.equal(masked["here"], masked["other text"])
    for name in ("other seed", "other step", "other slot"):
        assert not torch.equal(masked["here"], masked[name]), name


# ------------------------------------------------------------------------------------------------- how masks are spread
@pytest.mark.parametrize("estimator", ["stratified", "independent", "count"])
def test_no_position_has_a_time_of_its_own(estimator):
    """In every column of every row, over steps, the time is uniform and a token masked half of the time."""
    texts, steps = masking.lay_out(batch(rows=4)), 600
    times, masked = [], []
    for step in range(steps):
        units = masking.units_of(texts, 3)
        times.append(masking.times((0, step), texts.slots.unsqueeze(1), units))
        masked.append(masking.draw(texts, (0, step), LinearNoise(), estimator, 3)[0].masked)
    counts = torch.stack(times).mul(8).long()
    for eighth in range(8):
        share = (counts == eighth).double().mean(0)
        assert ((share - 1 / 8).abs() < 5 * (7 / 64 / steps) ** 0.5).all()
    rate = torch.stack(masked).double().mean(0)[texts.open]
    wanted = torch.full_like(rate, 0.5)
    if estimator == "count":  # k of L, k uniform in 1..L: (L + 1) / 2L
        units = masking.units_of(texts, 3)
        size = torch.zeros(4, 14).scatter_add(1, units, texts.open.float()).gather(1, units)[texts.open]
        wanted = (size + 1) / 2 / size
    assert ((rate - wanted).abs() < 5 * (0.25 / steps) ** 0.5).all()


def test_every_count_is_equally_likely():
    texts, found = masking.lay_out(batch(rows=8)), []
    for step in range(300):
        (view,) = masking.draw(texts, (0, step), LinearNoise(), "count")
        found.append(view.masked[:, 1:8].sum(1))
    share = torch.bincount(torch.cat(found), minlength=8)[1:] / 2400
    assert (share - 1 / 7).abs().max() < 5 * (6 / 49 / 2400) ** 0.5


@pytest.mark.parametrize("block_size", [None, 3])
def test_complementary_views_mask_every_token_once(block_size):
    texts = masking.lay_out(batch())
    one, other = masking.draw(texts, (0, 0), LinearNoise(), "complementary", block_size)
    assert torch.equal(one.masked ^ other.masked, texts.open)
    assert not (one.masked & other.masked).any()
    assert ((1 / one.weights[one.masked]) < 1).all()


@pytest.mark.parametrize("low, high", [(0.3, 0.8), (1.0, 1.0)])
def test_clipped_noise_masks_within_its_rates(low, high):
    texts = masking.lay_out(batch(rows=64))
    (view,) = masking.draw(texts, (0, 0), ClippedNoise(low=low, high=high), "stratified")
    rates = 1 / view.weights[view.masked]
    assert rates.min() >= low - 1e-9 and rates.max() <= high + 1e-9
    assert abs(view.masked[texts.open].double().mean() - (low + high) / 2) < 0.05


# --------------------------------------------------------------------------------------------------------- the averages
def test_averages():
    """Over tokens, sequences or positions; rows of 12, 4 and no targets."""
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[0], mask[1, :4] = True, True
    whole, losses = rows_of(batch(loss_mask=None), torch.arange(3)), {}
    whole = dataclasses.replace(whole, loss_mask=mask)
    plain = MaskedDiffusion().query(whole, (0, 0))
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, plain.scored // 14, plain.weights)  # one nat a token
    for average in ("tokens", "sequences", "positions"):
        query = MaskedDiffusion(average=average).query(whole, (0, 0))
        losses[average] = (query.weights.sum() / query.count.sum()).item()
    assert losses["tokens"] == pytest.approx((sums.sum() / 16).item())
    assert losses["sequences"] == pytest.approx(((sums[0] / 12 + sums[1] / 4) / 2).item())
    assert losses["positions"] == pytest.approx((sums.sum() / 36).item())


# ------------------------------------------------------------------------------------------------------------- no leaks
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_masked_token_knows_nothing_of_itself_or_what_it_may_not_see(name):
    """The gradient of each target's nats in the embedded input: only in its document, and of the clean half only before
    its block."""
    objective, net, embedded = OBJECTIVES[name], network(), []
    net.embed.register_forward_hook(lambda module, args, x: embedded.append(x))
    query = objective.query(batch(rows=2), (0, 1))
    nll = net(query.tokens, query.context(), query.targets, query.scored)
    place, width = query.visibility.place, query.tokens.shape[1]
    size, joint = getattr(objective, "block_size", 100), isinstance(objective, JointDiffusion)
    targets = query.targets.numel()
    _, columns = objective.ask(
        texts := masking.lay_out(batch(rows=2)),
        masking.draw(texts, (0, 1), objective.noise, objective.estimator, objective.parts()),
        SPECIALS,
    )
    columns = torch.cat([texts.open.flatten().nonzero().flatten(), columns]) if joint else columns
    assert len(columns) == targets
    laid = texts.tokens.shape[1]
    for number in range(0, targets, 3):
        (grad,) = torch.autograd.grad(nll[number], embedded[0], retain_graph=True)
        row, column = divmod(int(columns[number]), laid)
        reached = grad.abs().sum(-1) > 0  # (B, width)
        assert not reached[1 - row].any(), "another row"
        position = int(texts.visibility.positions[row, column])
        own = texts.visibility.doc_ids[row, column]
        for at in reached[row].nonzero().flatten().tolist():
            assert place.doc[row, at] == own, "another document"
            clean = width > laid and at >= laid
            before = int(place.position[row, at])
            if joint and number < int(texts.open.sum()):
                assert clean and before < position, "the next token"
            elif clean:
                assert before // size < position // size, "its own block, clean"
            else:
                assert before // size == position // size, "another block, noisy"


# ---------------------------------------------------------------------------------------------------------------- joint
@pytest.mark.parametrize("at", ["own", "before"])
def test_joint_is_next_token_prediction_and_block_diffusion_in_one_pass(at):
    net, whole = network(), batch(rows=3)
    objective = JointDiffusion(block_size=3, diffusion_weight=0.25, logits_at=at)
    query = objective.query(whole, (0, 2))
    nll = net(query.tokens, query.context(), query.targets, query.scored)
    plain = dataclasses.replace(NextToken().query(whole, (0, 0)), impossible=(MASK,))
    exact = net(plain.tokens, plain.context(), plain.targets).flatten()
    count = exact.numel()
    torch.testing.assert_close(nll[:count], exact, rtol=1e-10, atol=1e-10)
    assert torch.equal(query.weights[:count], torch.ones(count).double())
    blocks = BlockDiffusion(block_size=3, logits_at=at).query(whole, (0, 2))
    assert torch.equal(query.targets[count:], blocks.targets)
    assert torch.equal(query.weights[count:], 0.25 * blocks.weights)
    torch.testing.assert_close(nll[count:], drafted(net, objective, whole, (0, 2)), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def drafted(net, objective, whole, key):
    """Nats of masked tokens as they are decoded: blocks of masks behind finished text that has been seen causally."""
    texts, found = masking.lay_out(whole), []
    (view,) = masking.draw(texts, key, objective.noise, objective.estimator, objective.block_size)
    noisy = texts.tokens.masked_fill(view.masked, MASK)
    for row in range(len(noisy)):
        for doc in texts.visibility.doc_ids[row].unique_consecutive():
            own = (texts.visibility.doc_ids[row] == doc).nonzero().flatten()
            cache, carried = Cache(len(own)), None
            for place in own.split(objective.block_size):
                seen = {
                    kind: Visibility.rows(place.unsqueeze(0), kind=kind, start=cache.length, block_size=3)
                    for kind in ("block", "causal")
                }
                logits = net(noisy[row, place].unsqueeze(0), Context(seen["block"], cache.peek()))[0]
                finished = net(texts.tokens[row, place].unsqueeze(0), Context(seen["causal"], cache))[0]
                if objective.logits_at == "before":
                    logits = torch.cat([logits[:1] if carried is None else carried, logits[:-1]])
                    carried = finished[-1:]
                logits[:, MASK] = -torch.inf
                nats = -torch.log_softmax(logits, -1).gather(1, texts.tokens[row, place].unsqueeze(1)).squeeze(1)
                found += nats[view.masked[row, place]].tolist()
    return torch.tensor(found, dtype=torch.float64)


def test_finished_text_and_a_draft_in_one_pass_are_those_of_two():
    """What a sampler of a joint model may do: causal text and the block behind it at once."""
    net, tokens = network(), torch.randint(3, VOCAB, (1, 7))
    cache = Cache(7)
    net(tokens[:, :4], Context(Visibility.rows(tokens[:, :4]), cache))
    draft = Visibility(torch.arange(4, 7).unsqueeze(0), None, "block", 4)
    wanted = net(tokens[:, 4:], Context(draft, cache.peek()))
    whole = Visibility(torch.arange(7).unsqueeze(0), None, "block", 4, finished=4)
    torch.testing.assert_close(net(tokens, Context(whole))[:, 4:], wanted, rtol=1e-10, atol=1e-10)
