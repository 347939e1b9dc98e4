"""A ledger of tensors: what is alive, and the most that ever was, while a network runs on tensors without storage.

PyTorch's FakeTensorMode runs every operation as its device would, autocast and the choice of attention kernel
included, and computes nothing. The trick: a storage enters the ledger with the operation that makes it and leaves it
when Python and autograd have let go of it, so that peaks come out as on a device, for any part and any optimizer.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lit_small_lm.grouped
import lit_small_lm.nn.head  # noqa: F401  (they register the operators that `workspace` knows)

POOLED = 32 << 20
"""Bytes up to which a tensor comes out of the C library's heap, which keeps what is freed (glibc's largest
M_MMAP_THRESHOLD); a larger one is mapped by itself and given back when it goes."""


class Ledger(TorchDispatchMode):
    """Counts the bytes of every storage that operations under it make."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        """Alive now."""
        self.peak = 0
        """The most since `mark`."""
        self.pooled = 0
        """Alive now in storages of at most `POOLED` bytes."""
        self.pooled_peak = 0
        """The most of these since `mark`."""
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def mark(self) -> None:
        """Begin a new peak."""
        self.peak, self.pooled_peak = self.bytes, self.pooled

    def enter(self, tensor: Tensor) -> None:
        """Count a tensor's storage; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._alive:
            self._alive[key] = (weakref.ref(storage, lambda _: self._leave(key)), storage.nbytes())
            self._change(storage.nbytes(), 1)

    def _leave(self, key: int) -> None:
        _, size = self._alive.pop(key)
        self._change(size, -1)

    def _change(self, size: int, sign: int) -> None:
        self.bytes += sign * size
        self.pooled += sign * size if size <= POOLED else 0
        self.peak, self.pooled_peak = max(self.peak, self.bytes), max(self.pooled_peak, self.pooled)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.enter(tensor)
        held = workspace(func, args)
        self.peak = max(self.peak, self.bytes + sum(held))
        self.pooled_peak = max(self.pooled_peak, self.pooled + sum(size for size in held if size <= POOLED))
        return found


def workspace(func: Any, args: tuple) -> list[int]:
    """Bytes of the tensors that an operation of this package holds while it runs, beside what goes in and comes out."""
    own = torch.ops.lit_small_lm
    if func is own.summed_nll.default:
        return _piece_of_logits(*args)
    if func is own.grouped_linear.default:
        rows, weights, _ = args
        return _stacked(rows, weights)
    if func is own.grouped_linear_backward.default:
        _, rows, weights, _ = args
        same = rows.dtype == weights[0].dtype
        return _stacked(rows, weights) + ([] if same else [sum(weight.numel() for weight in weights) * rows.itemsize])
    return []


def _piece_of_logits(h, weight, targets, weights, softcap, impossible, dtype, rows, pieces) -> list[int]:
    """Logits, their log-softmax and, of a smaller type, its gradient; and a copy of the head in that type."""
    count, exact = min(rows, len(h)) * len(weight), torch.promote_types(dtype, torch.float32).itemsize
    logits = [count * exact] * 2
    return logits if weight.dtype == dtype else [*logits, count * dtype.itemsize, weight.numel() * dtype.itemsize]


def _stacked(rows: Tensor, weights: list[Tensor]) -> list[int]:
    """All experts' matrices in one tensor, and, of another dtype, a copy of each before."""
    size = sum(weight.numel() for weight in weights) * rows.itemsize
    return [size] if rows.dtype == weights[0].dtype else [size, size]
