"""How glibc's allocator treats memory that is freed: kept for the next step while training on a CPU.

By default large blocks are given back to the system when they are freed, and every step has the same pages mapped,
zeroed and faulted in again (`man mallopt`). Keeping them costs what lies unused between blocks. A user who has set
the allocator, or loaded another one, is left alone.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping

from lit_small_lm.errors import RequestError, shown

VARIABLE = "LIT_SMALL_LM_FREED_MEMORY"
"""Environment variable: keep (where it is not set) or release."""
ANSWERS = ("keep", "release")
OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""What the environment variables begin with that say how memory is allocated."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Free bytes at the end of the heap that are given back; blocks that have a mapping of their own (`malloc.h`)."""
KEPT = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
DEFAULTS = {TRIM_THRESHOLD: 128 * 1024, MMAP_MAX: 65536}


def keeps(environment: Mapping[str, str], accelerator: str) -> bool:
    """Whether freed memory is to be kept in a training on this kind of device.

    Raises:
        RequestError: the environment variable is neither of its answers.
    """
    answer = environment.get(VARIABLE, "keep")
    if answer not in ANSWERS:
        raise RequestError(f"{VARIABLE}: {shown(answer)}; allowed: {', '.join(ANSWERS)}")
    own = any(name.startswith(OWN) for name in environment)
    return answer == "keep" and accelerator == "cpu" and not own and "CS_GNU_LIBC_VERSION" in os.confstr_names


@contextlib.contextmanager
def freed_memory(accelerator: str) -> Iterator[None]:
    """Keep what is freed meanwhile, where that is wanted; what is left over is given back at the end."""
    if not keeps(os.environ, accelerator):
        yield
        return
    library = ctypes.CDLL(None)
    _set(library, KEPT)
    try:
        yield
    finally:
        _set(library, DEFAULTS)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, settings: Mapping[int, int]) -> None:
    for parameter, value in settings.items():
        library.mallopt(parameter, value)
