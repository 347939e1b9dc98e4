"""Transforms of functions that the operators of this package do not take part in; their plain twins do."""

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func transforms what is computed, or forward-mode derivatives are carried along: an operator that
    knows none would drop those without a word."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
