"""Freed memory is kept while training on a CPU, unless somebody has said otherwise."""

import ctypes
import os

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.cli import allocator
from lit_small_lm.cli.allocator import DEFAULTS, KEPT, VARIABLE, freed_memory, keeps
from lit_small_lm.errors import RequestError

glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")


@glibc
@pytest.mark.parametrize(
    "environment, accelerator, kept",
    [
        ({}, "cpu", True),
        ({VARIABLE: "keep"}, "cpu", True),
        ({VARIABLE: "release"}, "cpu", False),
        ({}, "cuda", False),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, "cpu", False),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "cpu", False),
        ({"LD_PRELOAD": "libjemalloc.so"}, "cpu", False),
    ],
)
def test_who_has_set_the_allocator_is_left_alone(environment, accelerator, kept):
    assert keeps(environment, accelerator) is kept


def test_another_answer_is_refused():
    with pytest.raises(RequestError, match=f"{VARIABLE}: some; allowed: keep, release"):
        keeps({VARIABLE: "some"}, "cpu")


@glibc
def test_large_blocks_are_of_the_heap_meanwhile(monkeypatch):
    for name in [name for name in os.environ if name.startswith(allocator.OWN)]:
        monkeypatch.delenv(name)
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def mapped():
        """Whether a block of 256 MB has a mapping of its own, as glibc notes beside its size."""
        block = library.malloc(ctypes.c_size_t(2**28))
        flags = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
        library.free(block)
        return bool(flags & 2)

    assert mapped()
    with freed_memory("cpu"):
        assert not mapped()
    assert mapped()


@glibc
def test_training_asks_for_it(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(allocator, "_set", lambda library, settings: asked.append(settings))
    monkeypatch.setattr(allocator, "OWN", ("NOTHING_LIKE_THIS",))
    argv = ["fit", *tiny, "--trainer.max_steps", "1", "--run_dir"]
    assert main([*argv, str(tmp_path / "kept")]) == 0
    assert asked == [KEPT, DEFAULTS]
    monkeypatch.setenv(VARIABLE, "release")
    assert main([*argv, str(tmp_path / "released")]) == 0
    assert asked == [KEPT, DEFAULTS]
