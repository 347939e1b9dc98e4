"""Hugging Face: what public configurations and weights are called there, import, export, and the Auto classes.

`import lit_small_lm.hf` makes AutoConfig and AutoModelForCausalLM know the models that `lit-small-lm export` writes
where no public class fits. The rooms below are used without transformers too, which takes seconds to import: the
wrapper is registered when somebody imports the Auto classes, be it before or after this package.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"
"""The module of the Auto classes."""
WRAPPER = "lit_small_lm.hf.model"


class _Watch(importlib.abc.MetaPathFinder):
    """Finds nothing itself; when the Auto classes are found, it sees to it that the wrapper follows them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _followed(spec.loader.exec_module)
        return spec


def _followed(run):
    def run_and_register(module: ModuleType) -> None:
        run(module)
        importlib.import_module(WRAPPER)

    return run_and_register


if AUTO in sys.modules:
    importlib.import_module(WRAPPER)
else:
    sys.meta_path.insert(0, _Watch())
