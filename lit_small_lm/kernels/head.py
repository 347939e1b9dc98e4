"""The head's loss and its gradients by the kernel: where it is taken. `nn.head` computes the same in plain pieces."""

import torch
from torch import Tensor

from lit_small_lm.kernels.building import loaded

ARGUMENTS = "Tensor h, Tensor weight, Tensor targets, Tensor? weights, int[] impossible, int rows"

torch.library.define("lit_small_lm::nll_and_gradients", f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)")


def takes(h: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel is there for what is computed in this dtype, and to be taken."""
    return loaded() and h.is_cpu and h.dtype == weight.dtype == dtype == torch.float32
