"""The head's loss and its gradients by the kernel: where it is taken. `nn.head` computes the same in plain pieces."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_small_lm.kernels.building import loaded

ARGUMENTS = "Tensor h, Tensor weight, Tensor targets, Tensor? weights, int[] impossible, int rows"

torch.library.define("lit_small_lm::nll_and_gradients", f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)")


def takes(h: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel is there for what is computed in this dtype, and to be taken."""
    return loaded() and h.is_cpu and h.dtype == weight.dtype == dtype == torch.float32


def nll_and_gradients(
    h: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, impossible: Sequence[int], rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """h (M, D), weight (V, D), targets (M,), weights (M,) or None for all one -> the nats (M,), and the gradients of
    their weighted sum by h and by weight, computed for so many rows of h at once.

    Raises:
        RuntimeError: a target, or an id that is `impossible`, is none of the V ids.
    """
    weights = None if weights is None else weights.to(h.dtype)
    return torch.ops.lit_small_lm.nll_and_gradients(h, weight, targets.long(), weights, impossible, rows)
