import shutil

import pytest

from lit_small_lm.kernels import building
from lit_small_lm.training.compiled import cache_folder, refuse_foreign_cache


@pytest.fixture(scope="module")
def kernels():
    """The kernels in C++, in this process."""
    if not building.suited() or not shutil.which("g++"):
        pytest.skip("needs a processor with AVX-512, oneDNN and g++")
    refuse_foreign_cache()
    building.load(cache_folder())
    assert building.loaded()
