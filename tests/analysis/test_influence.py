import numpy as np
import pytest
import torch

from lit_small_lm.analysis.influence import caused, fitted, useful
from lit_small_lm.analysis.surgery import running
from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.context import Context
from lit_small_lm.errors import RequestError
from lit_small_lm.nn.attention_residuals import AttentionResiduals
from lit_small_lm.nn.parallel_norm import ParallelNorm


def updates(subject, layers):
    """By hand: what each of `layers` adds at every data position, (layers, P, D)."""
    net, found = subject.net, []

    class Watch(torch.nn.Module):
        def __init__(self, layer, into):
            super().__init__()
            self.layer, self.into = layer, into

        def forward(self, x, ctx):
            y = self.layer(x, ctx)
            self.into.append(y - x)
            return y

    for question in subject.questions:
        seen = []
        with torch.no_grad(), running(net, [Watch(net.layers[i], seen) for i in layers]):
            net(question.query.tokens, Context(question.query.visibility))
        found.append(torch.stack([x[question.data] for x in seen]))
    return torch.cat(found, dim=1).numpy()


def test_causal_scores_by_hand(make_subject, tell):
    subject = make_subject()
    found = caused(subject, tell)
    whole, scores = updates(subject, range(4)), []
    for skipped in range(4):
        rest = [layer for layer in range(4) if layer != skipped]
        changed = dict(zip(rest, updates(subject, rest), strict=True))
        for later in range(4):
            wanted = 0.0
            if later > skipped:
                difference = np.linalg.norm(changed[later] - whole[later], axis=-1).mean()
                wanted = difference / np.linalg.norm(whole[later], axis=-1).mean()
                scores.append(wanted)
            assert found["score"][skipped][later] == pytest.approx(wanted, rel=1e-9)
    assert found["mean"] == pytest.approx(np.mean(scores), rel=1e-9)


def test_skipping_a_layer_that_does_nothing_causes_nothing(make_subject, still, tell):
    subject = make_subject()
    still(subject.net.layers[1])
    assert caused(subject, tell)["score"][1] == [0.0] * 4


def test_an_affine_layer_is_not_useful(make_subject, tell):
    subject = make_subject()
    torch.manual_seed(1)
    weight, shift = torch.randn(16, 16).double() / 4, torch.randn(16).double()

    class Map(torch.nn.Module):
        def forward(self, x, ctx):
            return x @ weight + shift

    subject.net.layers[2] = Map()
    maps = fitted(subject)
    torch.testing.assert_close(maps[2][0].double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps[2][1].double(), shift, rtol=1e-5, atol=1e-5)
    found = useful(subject, tell)
    assert abs(found["rise"][2]) < 1e-6 and found["unexplained"][2] < 1e-9
    assert min(found["unexplained"][layer] for layer in (0, 1, 3)) > 1e-3
    loss = subject.loss(subject.full).value
    assert found["threshold"] == pytest.approx(loss / 10)
    assert found["share"] == sum(rise > loss / 10 for rise in found["rise"]) / 4


def test_maps_are_least_squares(make_subject):
    subject = make_subject()
    whole, before = updates(subject, range(4)), None
    for question in subject.questions:
        x = subject.net.embed(question.query.tokens)[question.data].detach()
        before = x if before is None else torch.cat([before, x])
    before = before.numpy()
    design = np.concatenate([before, np.ones((len(before), 1))], axis=1)
    wanted, *_ = np.linalg.lstsq(design, before + whole[0], rcond=None)
    weight, shift, left = fitted(subject)[0]
    np.testing.assert_allclose(weight.numpy(), wanted[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shift.numpy(), wanted[-1], rtol=1e-4, atol=1e-5)
    rest, spread = before + whole[0] - design @ wanted, before + whole[0] - (before + whole[0]).mean(0)
    assert left == pytest.approx((rest**2).sum() / (spread**2).sum(), rel=1e-6)


def test_where_there_is_no_one_stream_it_is_said(make_subject, tell):
    useful(make_subject(BackboneSpec(norm=ParallelNorm())), tell)
    with pytest.raises(RequestError, match="several tensors"):
        useful(make_subject(BackboneSpec(norm=AttentionResiduals())), tell)


def test_too_little_text_is_refused(make_net, make_batch, tell):
    from lit_small_lm.analysis.questions import ask
    from lit_small_lm.analysis.subject import Subject
    from lit_small_lm.objectives.next_token import NextToken

    subject = Subject(make_net(), ask(NextToken(), [make_batch(rows=2)], 0, draws=1))
    with pytest.raises(RequestError, match="45 positions are too few to fit maps of 17 rows"):
        useful(subject, tell)
