"""Memory in large pages: zeros like any others."""

import gc

import pytest
import torch

from lit_small_lm import pages

LONG = pages.PAGE // 4 + 5
"""Numbers of four bytes that fill one page and some of a second."""
linux = pytest.mark.skipif(pages.ADVICE is None, reason="no such pages on this system")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [[3, 5], [3, LONG], [0]], ids=str)
def test_zeros_of_any_size_and_type(shape, dtype):
    found = pages.zeros(shape, dtype)
    assert torch.equal(found, torch.zeros(shape, dtype=dtype))
    assert found.is_contiguous()


@linux
def test_what_fills_a_page_begins_with_one():
    assert pages.zeros([LONG], torch.float32).data_ptr() % pages.PAGE == 0


@linux
def test_memory_stays_as_long_as_a_view_of_it():
    row = pages.zeros([2, LONG], torch.float32)[1]
    gc.collect()
    other = pages.zeros([2, LONG], torch.float32).fill_(7)
    assert (row == 0).all()
    assert other.data_ptr() != row.data_ptr()


@pytest.mark.parametrize("advice", [None, pytest.param(-1, marks=linux)], ids=str)
def test_systems_without_such_pages(monkeypatch, advice):
    """None: nothing to ask for; a number that is not known there is refused by the system."""
    monkeypatch.setattr(pages, "ADVICE", advice)
    found = pages.zeros([LONG], torch.float32)
    found[-1] = 3
    assert found.sum() == 3
