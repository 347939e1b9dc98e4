"""Tiny networks under examination."""

import dataclasses

import pytest
import torch

from lit_small_lm.analysis.questions import ask
from lit_small_lm.analysis.subject import Subject
from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.batch import Batch, Specials
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Dims

DIMS = Dims(dim=16, n_layers=4, n_heads=2, n_kv_heads=1, head_dim=8, hidden=24)
SPECIALS = Specials(32, end=0, pad=1, mask=2)


@pytest.fixture
def make_net():
    """`make_net(spec, layers)`: a float64 network of this family, every weight of it large and drawn from one seed."""

    def make(spec: BackboneSpec = BackboneSpec(), layers: int = 4) -> Backbone:
        torch.manual_seed(0)
        net = Backbone(spec, dataclasses.replace(DIMS, n_layers=layers), SPECIALS.vocab_size).double().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return net

    return make


@pytest.fixture
def make_batch():
    """`make_batch(rows, length)`: random tokens, three documents a row, the last positions of the last row padding."""

    def make(rows: int = 4, length: int = 24, padding: int = 3) -> Batch:
        tokens = torch.randint(3, 32, (rows, length + 1), generator=torch.Generator().manual_seed(1))
        places = torch.arange(length + 1) * 3 // (length + 1)  # (T+1,)
        documents = 3 * torch.arange(rows)[:, None] + places
        documents[-1, length - padding :] = -1
        mask = documents[:, :-1] >= 0
        return Batch(tokens, documents, mask, torch.arange(rows), torch.arange(rows), SPECIALS)

    return make


@pytest.fixture
def make_subject(make_net, make_batch):
    """`make_subject(spec, layers)`: such a network, asked about such rows in two batches."""

    def make(spec: BackboneSpec = BackboneSpec(), layers: int = 4, seed: int = 0) -> Subject:
        batch = make_batch()
        halves = [slice_of(batch, slice(0, 2)), slice_of(batch, slice(2, 4))]
        return Subject(make_net(spec, layers), ask(NextToken(), halves, seed, draws=1), seed)

    return make


def slice_of(batch: Batch, rows: slice) -> Batch:
    names = ("tokens", "doc_ids", "loss_mask", "sample_ids", "slots")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[rows] for name in names})


@pytest.fixture
def still():
    """`still(layer)`: the layer writes nothing any more, whatever it reads; the stream of Pre-LN passes through."""

    def make(layer: torch.nn.Module) -> None:
        with torch.no_grad():
            layer.mixer.o_proj.weight.zero_()
            layer.ffn.down_proj.weight.zero_()

    return make


def ignored(*_: object) -> None:
    pass


@pytest.fixture
def tell():
    """Takes progress and says nothing."""
    return ignored
