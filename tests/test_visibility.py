"""Blocks: who sees whom in a row of them, in a doubled row, and which neighbours a convolution finds there."""

import pytest
import torch

from lit_small_lm.context import Cache, Context, Place, Visibility
from lit_small_lm.keys import uniform
from lit_small_lm.nn.canon import CausalCanon
from lit_small_lm.nn.neighbours import NeighbourSum, gathered

TOKENS = torch.zeros(1, 5, dtype=torch.long)
DOCS = torch.tensor([[7, 7, 3, 3, 3]])
CLEAN = ("block", "causal")
KINDS = ("causal", "annealed", "bidirectional", "block", "doubled")


def seen(view, **settings):
    """The mask as rows of 0 and 1."""
    return ["".join(str(int(x)) for x in row) for row in view.dense(**settings)[0, 0]]


def packed(kind, size=2, clean="block"):
    """Rows of three documents, of 3, 5 and 2 positions, and of one."""
    docs = torch.tensor([[4] * 3 + [2] * 5 + [9] * 2, [1] * 10])
    if kind == "doubled":
        return Visibility.rows(docs, docs).doubled(size, clean)
    if kind == "annealed":
        return Visibility.rows(docs, docs).annealed(0.5, 7)
    return Visibility.rows(docs, docs, kind, block_size=size)


def test_blocks():
    assert seen(Visibility.rows(TOKENS, kind="block", block_size=2)) == ["11000"] * 2 + ["11110"] * 2 + ["11111"]


def test_blocks_count_from_each_document_s_beginning():
    assert seen(Visibility.rows(TOKENS, DOCS, "block", block_size=2)) == ["11000"] * 2 + ["00110"] * 2 + ["00111"]


def test_blocks_of_one_are_causal_and_a_block_of_all_is_bidirectional():
    for docs in (None, DOCS):
        for size, kind in ((1, "causal"), (5, "bidirectional"), (None, "bidirectional")):
            assert seen(Visibility.rows(TOKENS, docs, "block", block_size=size)) == seen(
                Visibility.rows(TOKENS, docs, kind)
            )


def test_doubled():
    tokens = TOKENS[:, :4]
    noisy = ["1100" + "0000"] * 2 + ["0011" + "1100"] * 2
    assert seen(Visibility.rows(tokens).doubled(2)) == noisy + ["00001100"] * 2 + ["00001111"] * 2
    causal = ["00001000", "00001100", "00001110", "00001111"]
    assert seen(Visibility.rows(tokens).doubled(2, "causal")) == noisy + causal


def test_rows_of_kind_doubled_hold_both_halves():
    view = Visibility.rows(torch.cat([TOKENS, TOKENS], 1), DOCS.repeat(1, 2), "doubled", block_size=2)
    assert seen(view) == seen(Visibility.rows(TOKENS, DOCS).doubled(2))


@pytest.mark.parametrize("clean", CLEAN)
@pytest.mark.parametrize("size", [1, 2, 3, 10])
@pytest.mark.parametrize("window", [None, 3])
def test_doubled_against_a_slow_loop(size, clean, window):
    view = packed("doubled", size, clean)
    mask, time = view.dense(window=window)[:, 0], 10
    for row in range(2):
        for q in range(2 * time):
            for k in range(2 * time):
                p, r = int(view.positions[row, q]), int(view.positions[row, k])
                if q < time:
                    wanted = p // size == r // size if k < time else r // size < p // size
                else:
                    wanted = k >= time and (r // size <= p // size if clean == "block" else r <= p)
                wanted &= view.doc_ids[row, q] == view.doc_ids[row, k]
                wanted &= window is None or abs(p - r) < window
                assert mask[row, q, k] == wanted, (row, q, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clean", CLEAN)
@pytest.mark.parametrize("j", range(-4, 5))
def test_a_neighbour_is_visible_and_stands_where_it_should(kind, clean, j):
    """A convolution must never see what attention may not."""
    view = packed(kind, clean=clean)
    index, exists = view.neighbour(j)
    allowed = view.dense()[:, 0].gather(2, index.unsqueeze(-1)).squeeze(-1)
    assert not (exists & ~allowed).any()
    there = view.positions.gather(1, index)
    assert torch.equal(there[exists], (view.positions - j)[exists])
    if j > 0:
        assert torch.equal(exists, view.positions >= j)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("j", range(1, 4))
def test_neighbours_to_the_right_reach_as_far_as_the_view(kind, j):
    """There is one wherever attention may look at the position j further on, in the same half."""
    view = packed(kind)
    mask, time = view.dense()[:, 0], view.positions.shape[1]
    half = time // 2 if kind == "doubled" else time
    _, exists = view.neighbour(-j)
    for row in range(2):
        for q in range(time):
            k = q + j
            wanted = k // half == q // half and k < time and bool(mask[row, q, k])
            assert exists[row, q] == wanted, (row, q)


def test_a_noisy_block_finds_its_left_neighbours_in_the_clean_half():
    index, exists = Visibility.rows(TOKENS[:, :4]).doubled(2).neighbour(1)
    assert exists.int().tolist() == [[0, 1, 1, 1, 0, 1, 1, 1]]
    assert index[0, 1:4].tolist() == [0, 5, 2]
    assert index[0, 5:].tolist() == [4, 5, 6]


def test_convolutions_of_a_doubled_row_by_hand():
    noisy, clean = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[10.0, 20, 30, 40]])
    view = Visibility.rows(noisy).doubled(2)
    out = gathered(torch.cat([noisy, clean], 1).unsqueeze(-1), torch.tensor([[1.0, 1.0, 1.0]]), view)
    assert out.flatten().tolist() == [1, 3, 3 + 20 + 10, 4 + 3 + 20, 10, 30, 60, 90]


def test_a_doubled_row_of_equal_halves_convolves_like_the_row():
    torch.manual_seed(0)
    h, module = torch.randn(2, 10, 3), NeighbourSum(3, 4, "here")
    for kind in ("causal", "block"):
        alone = module(h, Context(packed(kind)))
        both = module(torch.cat([h, h], 1), Context(packed("doubled")))
        torch.testing.assert_close(both, torch.cat([alone, alone], 1))


def test_peeking_leaves_the_cache_as_it_was():
    torch.manual_seed(0)
    cache, k, h = Cache(6), torch.randn(1, 1, 4, 3), torch.randn(1, 4, 3)
    cache.keys_values(0, k[:, :, :2], k[:, :, :2])
    cache.left("here", h[:, :2], 3)
    cache.advance(2)
    for _ in range(2):
        peek = cache.peek()
        assert torch.equal(peek.keys_values(0, k[:, :, 2:], k[:, :, 2:])[0], k)
        assert torch.equal(peek.left("here", h[:, 2:], 3), torch.cat([torch.zeros(1, 1, 3), h], 1))
        peek.advance(2)
    assert cache.length == 2
    other = torch.randn(1, 1, 2, 3)
    assert torch.equal(cache.keys_values(0, other, other)[0], torch.cat([k[:, :, :2], other], 2))
    assert torch.equal(cache.left("here", h[:, 2:], 3), torch.cat([torch.zeros(1, 1, 3), h], 1))


def test_a_first_look_keeps_no_left_context():
    cache, h = Cache(), torch.ones(1, 2, 3)
    assert torch.equal(cache.peek().left("here", h, 1), torch.cat([torch.zeros(1, 1, 3), h], 1))
    assert torch.equal(cache.left("here", h, 1), torch.cat([torch.zeros(1, 1, 3), h], 1))


def test_the_mask_of_blocks_is_never_left_out():
    view = Visibility.rows(TOKENS, kind="block", block_size=2)
    assert Context(view).mask() is not None
    assert Context(Visibility.rows(TOKENS, kind="bidirectional")).mask() is None


def test_parts_that_take_masks_and_taps_from_the_view_honour_every_kind():
    assert set(KINDS) == set(CausalCanon.kinds)


def test_finished_positions_of_a_row_of_blocks_see_causally():
    view = Visibility(torch.arange(5).unsqueeze(0), None, "block", 2, finished=2)
    assert seen(view) == ["10000", "11000"] + ["11110"] * 2 + ["11111"]
    keys = Place(torch.arange(7).unsqueeze(0), None)
    later = Visibility(torch.arange(4, 7).unsqueeze(0), None, "block", 2, finished=1)
    assert seen(later, keys=keys) == ["1111100", "1111110", "1111111"]


# ------------------------------------------------------------------------------------------------------------- annealed
def test_annealed_against_a_slow_loop():
    view = packed("annealed")
    mask = view.dense()[:, 0]
    for row in range(2):
        for q in range(10):
            for k in range(10):
                doc, p, r = (
                    int(part[row, i]) for part, i in ((view.doc_ids, q), (view.positions, q), (view.positions, k))
                )
                drawn = uniform(7, *(torch.tensor(number) for number in (doc, p, r))) < 0.5
                wanted = view.doc_ids[row, k] == doc and (r <= p or bool(drawn))
                assert mask[row, q, k] == wanted, (row, q, k)


@pytest.mark.parametrize("docs", [None, DOCS])
def test_annealing_begins_causal_and_ends_bidirectional(docs):
    rows = Visibility.rows(TOKENS, docs)
    for share, kind in ((0.0, "causal"), (1.0, "bidirectional")):
        assert seen(rows.annealed(share, 3)) == seen(Visibility.rows(TOKENS, docs, kind))
    assert seen(Visibility.rows(TOKENS, docs, "annealed")) == seen(rows)


def test_half_of_what_lies_ahead_is_half_annealed():
    """Of pairs off the diagonal a causal mask shows one half, and annealing its share of the other."""
    time = 300
    view = Visibility.rows(torch.zeros(1, time)).annealed(0.3, 11)
    off = ~torch.eye(time, dtype=torch.bool)
    assert view.dense()[0, 0][off].double().mean().item() == pytest.approx(0.5 + 0.5 * 0.3, abs=0.01)


def test_what_lies_ahead_depends_on_key_and_document_alone():
    docs = torch.tensor([[3, 3, 3, 3, 9, 9]])
    mask = Visibility.rows(docs, docs).annealed(0.5, 1).dense()[0, 0]
    other = torch.tensor([[8, 8, 3, 3, 3, 3]])  # the same document elsewhere in another row
    assert torch.equal(Visibility.rows(other, other).annealed(0.5, 1).dense()[0, 0, 2:, 2:], mask[:4, :4])
    assert not torch.equal(Visibility.rows(docs, docs).annealed(0.5, 2).dense()[0, 0], mask)
