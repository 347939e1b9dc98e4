"""Memory of the CPU in large pages, for what is read from end to end again and again: weights and decoding memory.

A processor remembers where about two thousand pages lie, 8 MB of the usual ones of 4 KiB; whatever comes beyond that is
looked up while it is read, and is not fetched ahead across their edges. Linux has pages of 2 MiB for who asks for them
(its documentation, "Transparent Hugepage Support"). Elsewhere, and where they are turned off, memory is as ever.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

PAGE = 1 << 21
"""Bytes of a large page on x86-64, and on ARM with small ones of 4 KiB."""
ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
"""How Linux is asked for them; None on other systems."""


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU, in large pages as far as they fill whole ones; what is not written to takes no memory."""
    size = math.prod(shape) * dtype.itemsize
    if ADVICE is None or size < PAGE:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory as long as a tensor is left of it
    start = -whole.data_ptr() % PAGE
    with contextlib.suppress(OSError):  # a system built without them
        memory.madvise(ADVICE, start, size // PAGE * PAGE)
    return whole[start : start + size].view(dtype).view(shape)
