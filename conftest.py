"""What holds for every test, those of the shipped plug-ins included: one thread, an own cache, no GPU assumed.

A plug-in's test lies beside the plug-in. It is imported by the plug-in's one name, `lit_small_lm.plugins.<name>`;
pytest's own guess from the folder (`plugins.<name>`) would import the plug-in a second time, under a second name.
The package has to be installed for that (`make test` does it), `pip install -e .` is enough.
"""

import importlib
import os
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

from lit_small_lm import spec

torch.set_num_threads(1)
PLUGINS = Path(__file__).resolve().parent / "plugins"


class PluginTests(pytest.Module):
    """A test file below plugins/."""

    def _getobj(self):
        parts = self.path.resolve().relative_to(PLUGINS).with_suffix("").parts
        return importlib.import_module(".".join(["lit_small_lm.plugins", *parts]))


def pytest_configure(config):
    """Tests cut runs short, and then a warm-up is longer than they are."""
    config.addinivalue_line("filterwarnings", "ignore:schedule.warmup. .* steps with trainer.max_steps")


def pytest_collect_directory(path, parent):
    if path.resolve().is_relative_to(PLUGINS):
        return pytest.Dir.from_parent(parent, path=path)  # a pytest.Package would import its __init__.py
    return None


def pytest_pycollect_makemodule(module_path, parent):
    if module_path.resolve().is_relative_to(PLUGINS):
        return PluginTests.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache folder of this test session (of this process, with xdist); the user's own is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_SMALL_LM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def specs_of_this_file(request):
    """A Spec class that a test file defines is known to that file alone, and no other test's list of names holds it."""
    found = spec.final_classes

    def without_those_of_other_files(kind):
        for cls in found(kind):
            if cls.__module__ == request.module.__name__ or not cls.__module__.rpartition(".")[2].startswith("test_"):
                yield cls

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "final_classes", without_those_of_other_files)
        yield
