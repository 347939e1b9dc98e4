"""Norm operators: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), each with or without a learned gain.

The gain may start anywhere: nn.LayerNorm serves a start of one, its child here any other. PyTorch has no kernel of its
own for RMSNorm on a CPU and puts it together from nine operations. `rms_norm` does it in five there, the same ones with
and without gradients; those of large inputs it takes by hand, keeping nothing but the input (2048 rows of 256 channels,
forward and backward: 3.3 and 1.6 ms).
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Norm, setting
from lit_small_lm.transforms import transformed

PLAIN = (Tensor, nn.Parameter)
LEAST_VALUES = 1 << 15
"""With fewer of them, what Python does for a gradient by hand takes longer than it saves."""


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """Root-mean-square norm with a learned gain."""

    eps: float = setting(1e-6, above=0)
    """Added to the mean square."""
    gain: Literal["w", "1+w", "none"] = "w"
    """What the normed values are multiplied with: a weight, one plus a weight (Gemma), or nothing."""
    start: float = setting(1.0)
    """Where the gain starts."""

    def build(self, dim: int) -> nn.Module:
        if self.gain == "none":
            return nn.RMSNorm(dim, eps=self.eps, elementwise_affine=False)
        if self.gain == "1+w":
            return OffsetRMSNorm(dim, self.eps, self.start - 1)
        return StartedRMSNorm(dim, self.eps, self.start)

    def starting_at(self, gain: float) -> "RMSNorm":
        return _started(self, gain)


class OffsetRMSNorm(nn.Module):
    """h * (1 + weight) / sqrt(mean of squares + eps): weights near zero keep their precision in bfloat16."""

    def __init__(self, dim: int, eps: float, start: float = 0.0) -> None:
        super().__init__()
        self.eps, self.start = eps, start
        self.weight = nn.Parameter(torch.full((dim,), start))

    def reset_parameters(self) -> None:
        """Every weight at its start."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, h: Tensor) -> Tensor:
        return rms_norm(h, 1 + self.weight, self.eps)


class StartedRMSNorm(nn.RMSNorm):
    """nn.RMSNorm whose gain starts anywhere."""

    def __init__(self, dim: int, eps: float, start: float) -> None:
        self.start = start
        super().__init__(dim, eps=eps)

    def reset_parameters(self) -> None:
        """Every gain at its start."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, h: Tensor) -> Tensor:
        return rms_norm(h, self.weight, self.eps)


def rms_norm(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """h (..., D), weight (D,) -> h / sqrt(mean of squares + eps) * weight; `F.rms_norm` is the plain twin."""
    if kernel(h, weight):
        return F.rms_norm(h, weight.shape, weight, eps)
    if not torch.is_grad_enabled():
        return (h * _factor(h, eps)).mul_(weight)
    if h.numel() < LEAST_VALUES:
        return h * _factor(h, eps) * weight
    return _GradientByHand.apply(h, weight, eps)


def kernel(h: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for these, torch.compile makes one, or other derivatives are wanted than ours."""
    alike = h.dtype == weight.dtype in (torch.float32, torch.float64)
    plain = type(h) in PLAIN and type(weight) in PLAIN
    return not (alike and plain and h.is_cpu) or torch.compiler.is_compiling() or transformed()


def _factor(h: Tensor, eps: float) -> Tensor:
    """(..., 1) one by the root of the mean square."""
    length = torch.linalg.vector_norm(h, 2, -1, True)
    return torch.addcmul(_constant(eps, h.dtype), length, length, value=1 / h.shape[-1]).rsqrt_()


@functools.cache
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype, device="cpu")  # whatever the default device is when it is made


def _gradients(grad: Tensor, h: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """grad, h (M, D), weight (D,) -> the gradients by h and by weight."""
    factor = _factor(h, eps)  # (M, 1)
    products = grad * h
    with torch.autocast("cpu", enabled=False):
        by_weight, inner = factor.t() @ products, products @ weight  # (1, D), (M,)
    slope = (inner.unsqueeze(1) * factor.square()).div_(-h.shape[1])
    return (grad * weight).addcmul_(h, slope).mul_(factor), by_weight.squeeze(0)


class _GradientByHand(torch.autograd.Function):
    """The gradient by h is r (g w - h r^2 mean(g w h)) for the factor r; where gradients of it are asked for, the plain
    twin's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, weight: Tensor, eps: float) -> Tensor:
        return (h * _factor(h, eps)).mul_(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.eps = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        h, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            wanted = [part for part, asked in zip((h, weight), ctx.needs_input_grad[:2], strict=True) if asked]
            plain = F.rms_norm(h, weight.shape, weight, ctx.eps)
            found = iter(torch.autograd.grad(plain, wanted, grad, create_graph=True))
            return *(next(found) if asked else None for asked in ctx.needs_input_grad[:2]), None
        by_h, by_weight = _gradients(grad.reshape(-1, len(weight)), h.reshape(-1, len(weight)), weight, ctx.eps)
        return by_h.view(h.shape), by_weight, None


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """Mean and variance norm with a learned gain and, if asked, a bias."""

    eps: float = setting(1e-5, above=0)
    """Added to the variance."""
    shift: Literal["bias", "none"] = "bias"
    """Whether a learned bias is added; never without a gain."""
    gain: Literal["w", "none"] = "w"
    """What the normed values are multiplied with: a weight, or nothing (OLMo 1, arXiv 2402.00838)."""
    start: float = setting(1.0)
    """Where the gain starts."""

    def build(self, dim: int) -> nn.Module:
        if self.gain == "none":
            return nn.LayerNorm(dim, eps=self.eps, elementwise_affine=False)
        bias = self.shift == "bias"
        if self.start == 1.0:
            return nn.LayerNorm(dim, eps=self.eps, bias=bias)
        return StartedLayerNorm(dim, self.eps, bias, self.start)

    def starting_at(self, gain: float) -> "LayerNorm":
        return _started(self, gain)


class StartedLayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose gain starts elsewhere than at one."""

    def __init__(self, dim: int, eps: float, bias: bool, start: float) -> None:
        self.start = start
        super().__init__(dim, eps=eps, bias=bias)

    def reset_parameters(self) -> None:
        """Every gain at its start, every bias at zero."""
        nn.init.constant_(self.weight, self.start)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _started(norm: RMSNorm | LayerNorm, gain: float) -> RMSNorm | LayerNorm:
    if norm.gain == "none":
        raise RequestError(f"{type(norm).__name__}.gain: none, where a gain has to start at {gain:.3g}")
    return dataclasses.replace(norm, start=gain)
