"""lit_small_lm: a PyTorch Lightning trainer for small language models."""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "load": "checkpoint",
    "AutoregressiveLM": "training.lit",
    "DiffusionLM": "training.diffusion",
    "LanguageModule": "training.lit",
    "BackboneSpec": "backbone",
    "LayerSpec": "backbone",
    "BudgetShape": "shapes",
    "FixedShape": "shapes",
    "TokenData": "data.datamodule",
    "WSDSchedule": "training.callbacks.wsd",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
