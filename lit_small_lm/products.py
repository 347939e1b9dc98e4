"""Linear maps on a CPU, by whichever of PyTorch's two libraries is faster there.

PyTorch multiplies float32 matrices with MKL, which is made for Intel's processors. oneDNN, which it also holds, comes
nearer to the limit of AMD's with AVX-512: of about 110 GFLOP/s a thread, 99 instead of 88 forward and 102 instead of 84
for the gradient by the input (EPYC of 2022, torch 2.13, 2048 rows of 256 to 1376 channels). For the gradient by the
weights they are even, so that stays with MKL, in compiled networks with `kernels/products.h`. Other processors, types
and devices have `F.linear`, the plain twin, and so does everything under `torch.backends.mkldnn.flags(enabled=False)`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from lit_small_lm.transforms import transformed


def suits_onednn() -> bool:
    """Whether this machine's processor is one for which oneDNN is known to be faster."""
    try:
        found = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch, which cannot say
        return False
    known = found.get("cpu_name", "").startswith("AMD") and found.get("avx512_f", False)
    return known and torch.backends.mkldnn.is_available()


SUITED = suits_onednn()
LEAST_ROWS = 64
"""With fewer rows laying the weights in oneDNN's order takes longer than it saves, ..."""
LEAST_WORK = 1 << 24
"""... and with fewer multiplications what Python does around them does."""
LONGEST = 1 << 14
"""Sums over more channels, the gradients of a large vocabulary's head, MKL takes as quickly."""


def linear(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """h (..., D), weight (F, D), bias (F,) -> (..., F)."""
    if not pays(h, weight):
        return F.linear(h, weight, bias)
    out = _product(h, weight) if torch.compiler.is_compiling() else _Product.apply(h, weight)
    return out if bias is None else out + bias


def pays(h: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply these."""
    if not SUITED or torch.jit.is_tracing():  # a trace is also for other machines
        return False
    inputs, outputs = h.shape[-1], weight.shape[0]
    if inputs > LONGEST or not _surely(h.numel() >= LEAST_ROWS * inputs):
        return False
    if not _surely(h.numel() * outputs >= LEAST_WORK):
        return False
    plain = type(weight) in (Tensor, nn.Parameter)
    exact = h.is_cpu and h.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and exact and torch.backends.mkldnn.enabled and not transformed()


def _surely(found: bool) -> bool:
    """The same, or no where sizes are not known while a network is compiled, as those of an expert's rows."""
    if not torch.compiler.is_compiling():
        return found
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(found)


def _onednn(h: Tensor, weight: Tensor) -> Tensor:
    """h (..., D), weight (F, D) -> (..., F)."""
    return torch.ops.mkldnn._linear_pointwise(h, weight, None, "none", [], "")


_product = torch.library.custom_op("lit_small_lm::product", _onednn, mutates_args=(), tags=(torch.Tag.flexible_layout,))
"""The same as an operator that compilers write down as it is, and that has a derivative."""


@_product.register_fake
def _(h: Tensor, weight: Tensor) -> Tensor:
    return h.new_empty(*h.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor, product: Callable[..., Tensor] = _product) -> tuple[Tensor | None, Tensor | None]:
    h, weight = ctx.saved_tensors
    by_h, by_weight = ctx.needs_input_grad
    of_h = product(grad, weight.t()) if by_h else None
    return of_h, gradient_by_weight(grad.flatten(0, -2), h.flatten(0, -2)) if by_weight else None


@torch.library.custom_op("lit_small_lm::product_by_weight", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _by_weight(grad: Tensor, h: Tensor) -> Tensor:
    """The plain twin of the kernel of this name, and what stands in for it."""
    return grad.t() @ h


@_by_weight.register_fake
def _(grad: Tensor, h: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[1], h.shape[1])


def gradient_by_weight(grad: Tensor, h: Tensor) -> Tensor:
    """grad (N, F), h (N, D) -> (F, D). Compiled code is kept on disk and has to be right in a process without the
    kernel, too, so that it names the operator in either."""
    return _by_weight(grad, h) if torch.compiler.is_compiling() else grad.t() @ h


_product.register_autograd(_backward, setup_context=_keep)


class _Product(torch.autograd.Function):
    """The same with less Python around it: of what an operator of our own runs, nothing is left in the processor's
    cache behind a large product, and one with its gradients took 0.2 ms more."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        out = _onednn(h, weight)
        _keep(ctx, (h, weight), out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()  # and oneDNN's own has no derivative
        return _backward(ctx, grad, _product if recorded else _onednn)


def _flops(h, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(h) * weight[0]


@register_flop_formula(torch.ops.lit_small_lm.product_by_weight)
def _flops_by_weight(grad, h, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(grad) * h[1]


def _counted() -> list[torch._ops.OpOverloadPacket]:
    """The operators that a product may be: ours, and oneDNN's where this build has it and nobody counts it yet."""
    if not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._linear_pointwise in flop_registry:
        return [torch.ops.lit_small_lm.product]
    return [torch.ops.lit_small_lm.product, torch.ops.mkldnn._linear_pointwise]


register_flop_formula(_counted())(_flops)
