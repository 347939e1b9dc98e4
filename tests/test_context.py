"""Who may look at whom; what decoding remembers; what a forward pass records."""

import pytest
import torch

from lit_small_lm.context import Cache, Context, Place, Trace, Visibility
from lit_small_lm.errors import RequestError

TOKENS = torch.zeros(1, 5, dtype=torch.long)
DOCS = torch.tensor([[7, 7, 3, 3, 3]])


def seen(view, **settings):
    """The mask as rows of 0 and 1."""
    return ["".join(str(int(x)) for x in row) for row in view.dense(**settings)[0, 0]]


def test_causal():
    assert seen(Visibility.rows(TOKENS)) == ["10000", "11000", "11100", "11110", "11111"]


def test_causal_packed():
    assert seen(Visibility.rows(TOKENS, DOCS)) == ["10000", "11000", "00100", "00110", "00111"]


def test_bidirectional():
    assert seen(Visibility.rows(TOKENS, kind="bidirectional")) == ["11111"] * 5


def test_bidirectional_packed():
    assert seen(Visibility.rows(TOKENS, DOCS, "bidirectional")) == ["11000"] * 2 + ["00111"] * 3


def test_window():
    assert seen(Visibility.rows(TOKENS), window=2) == ["10000", "11000", "01100", "00110", "00011"]
    assert seen(Visibility.rows(TOKENS, kind="bidirectional"), window=2) == [
        "11000",
        "11100",
        "01110",
        "00111",
        "00011",
    ]
    assert seen(Visibility.rows(TOKENS, DOCS), window=2) == ["10000", "11000", "00100", "00110", "00011"]


def test_positions_count_from_zero_in_each_document():
    assert Visibility.rows(TOKENS).positions.tolist() == [[0, 1, 2, 3, 4]]
    assert Visibility.rows(TOKENS, DOCS).positions.tolist() == [[0, 1, 0, 1, 2]]
    assert Visibility.rows(TOKENS, start=10).positions.tolist() == [[10, 11, 12, 13, 14]]
    assert Visibility.rows(TOKENS, DOCS, start=10).positions.tolist() == [[10, 11, 0, 1, 2]]


def test_a_document_that_comes_twice_in_a_row_counts_anew():
    """Two pieces of one document, apart from each other: positions restart where the id changes."""
    docs = torch.tensor([[1, 1, 2, 1, 1]])
    assert Visibility.rows(TOKENS, docs).positions.tolist() == [[0, 1, 0, 0, 1]]


def test_each_row_has_its_own_documents():
    docs = torch.tensor([[0, 0, 0, 1, 1], [2, 3, 3, 3, 3]])
    view = Visibility.rows(TOKENS.expand(2, 5), docs)
    assert view.positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert view.dense().shape == (2, 1, 5, 5)
    assert view.dense()[1, 0, 4].tolist() == [False, True, True, True, True]


def test_neighbours():
    view = Visibility.rows(TOKENS, DOCS)
    exists = {j: view.neighbour(j)[1].int().tolist()[0] for j in range(4)}
    assert exists == {0: [1, 1, 1, 1, 1], 1: [0, 1, 0, 1, 1], 2: [0, 0, 0, 0, 1], 3: [0, 0, 0, 0, 0]}
    index, there = view.neighbour(1)
    assert index[there].tolist() == [0, 2, 3]


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
@pytest.mark.parametrize("j", range(4))
def test_a_neighbour_is_always_visible(kind, j):
    """A convolution must never see what attention may not."""
    docs = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 3, 3], [4] * 9])
    view = Visibility.rows(docs, docs, kind)
    index, exists = view.neighbour(j)
    allowed = view.dense()[:, 0].gather(2, index.unsqueeze(-1)).squeeze(-1)
    assert not (exists & ~allowed).any()


def test_a_decoding_step_sees_all_earlier_keys():
    view = Visibility.rows(TOKENS[:, :2], start=3)
    keys = Place(torch.arange(5).unsqueeze(0), None)
    assert seen(view, keys=keys) == ["11110", "11111"]


# ---------------------------------------------------------------------------------------------------------------- cache
def test_keys_and_values_grow():
    cache = Cache(4)
    k, v = torch.randn(2, 1, 1, 4, 3).unbind(0)
    cache.keys_values(0, k[:, :, :3], v[:, :, :3])
    cache.advance(3)
    keys, values = cache.keys_values(0, k[:, :, 3:], v[:, :, 3:])
    assert torch.equal(keys, k)
    assert torch.equal(values, v)


def test_layers_do_not_share_memory():
    cache, ones = Cache(2), torch.ones(1, 1, 1, 3)
    cache.keys_values(0, ones, ones)
    cache.keys_values(1, 2 * ones, 2 * ones)
    cache.advance(1)
    assert (cache.keys_values(0, ones, ones)[0] == 1).all()


def test_buffers_are_made_once():
    cache, piece = Cache(3), torch.randn(1, 1, 1, 2)
    first, _ = cache.keys_values(0, piece, piece)
    cache.advance(1)
    second, _ = cache.keys_values(0, piece, piece)
    assert first.data_ptr() == second.data_ptr()


def test_a_cache_without_a_capacity_grows():
    fixed, growing, pieces = Cache(20), Cache(), torch.randn(5, 2, 1, 4, 3).unbind()
    for piece in pieces:
        wanted, found = (cache.keys_values(0, piece, -piece) for cache in (fixed, growing))
        assert all(map(torch.equal, found, wanted))
        places = [cache.places(Place(torch.full((2, 4), cache.length), None)) for cache in (fixed, growing)]
        assert torch.equal(*(place.position for place in places))
        for cache in (fixed, growing):
            cache.advance(4)


@pytest.mark.parametrize(
    ("rows", "capacity", "dtype", "sweeping"),
    [(16, 6, "float32", True), (15, 6, "float32", False), (16, 1 << 14, "float32", False), (16, 6, "bfloat16", False)],
)
def test_many_short_rows_lie_by_position(rows, capacity, dtype, sweeping):
    cache, k = Cache(capacity), torch.randn(rows, 4, 3, 2).to(getattr(torch, dtype))
    for start, end in ((0, 2), (2, 3)):
        keys, values = cache.keys_values("here", k[:, :, start:end], -k[:, :, start:end])
        cache.advance(end - start)
    assert torch.equal(keys, k)
    assert torch.equal(values, -k)
    assert (keys.stride(1) < keys.stride(2)) == sweeping


def test_what_no_pass_changes_is_made_once():
    cache, made = Cache(3), []
    for memory in (cache, cache.peek(), cache.fixed(torch.device("cpu"))):
        assert memory.once("table", lambda: made.append(1) or 5) == 5
    assert made == [1]


def test_rows_are_selected_in_every_buffer():
    cache, k, h = Cache(4), torch.randn(2, 1, 2, 3), torch.randn(2, 2, 3)
    cache.keys_values(0, k, k)
    cache.left("here", h, 1)
    cache.advance(2)
    cache.select(torch.tensor([1, 1]))
    assert torch.equal(cache.keys_values(0, k, k)[0][:, :, :2], k[[1, 1]])
    assert torch.equal(cache.left("here", h, 1)[:, :1], h[[1, 1], -1:])


def test_a_full_cache_refuses():
    cache, piece = Cache(2), torch.randn(1, 1, 3, 2)
    with pytest.raises(RequestError, match="3 positions asked for; it was made for 2"):
        cache.keys_values(0, piece, piece)


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [5, 1], [6]], ids=str)
def test_left_context_of_convolutions(sizes):
    cache, h = Cache(6), torch.arange(1.0, 7).view(1, 6, 1)
    padded = torch.cat([torch.zeros(1, 3, 1), h], 1)
    start = 0
    for piece in h.split(sizes, dim=1):
        end = start + piece.shape[1]
        assert torch.equal(cache.left("here", piece, 3), padded[:, start : end + 3])
        start = end


def test_places_are_appended_once_a_pass():
    cache, whole = Cache(5), Visibility.rows(TOKENS, DOCS)
    for start in (0, 2):
        view = Visibility(whole.positions[:, start : start + 2], whole.doc_ids[:, start : start + 2])
        ctx = Context(view, cache)
        first, second = ctx.keys(), ctx.keys()
        assert first is second
        cache.advance(2)
    assert second.position.tolist() == [[0, 1, 0, 1]]
    assert second.doc.tolist() == [[7, 7, 3, 3]]


def test_without_a_cache_the_keys_are_the_row_itself():
    view = Visibility.rows(TOKENS, DOCS)
    keys = Context(view).keys()
    assert keys.position is view.positions
    assert keys.doc is view.doc_ids


# ---------------------------------------------------------------------------------------------------------------- trace
def test_shared_values_are_made_once():
    trace, calls = Trace(), []
    for _ in range(2):
        assert trace.once("mask", lambda: calls.append(1) or None) is None
    assert calls == [1]
    assert trace.once("other", lambda: 5) == 5


def test_a_recomputed_layer_does_not_count_twice():
    trace = Trace()
    for _ in range(2):
        trace.losses["balance", 3] = torch.tensor(2.0)
    assert sum(trace.losses.values()) == 2


def test_each_pass_has_its_own_trace():
    view = Visibility.rows(TOKENS)
    assert Context(view).trace is not Context(view).trace
