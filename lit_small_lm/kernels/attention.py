"""Attention by the kernel: what PyTorch has to know of it, and where it is taken.

It is for compiled networks on a CPU, where it takes 0.55 to 0.85 of the time of PyTorch's own kernel and 0.7 of that of
`piecewise` (rows of 256 columns, torch 2.13, one thread of an AMD EPYC of 2022), causal, whole and cut rows alike; with
up to some 70 columns they are about even.
`nn.attention.plain_attention` with the dense mask is the plain twin.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lit_small_lm.kernels.building import loaded
from lit_small_lm.piecewise import TILES, dtype_of, empty_like
from lit_small_lm.transforms import transformed

DTYPES = (torch.float32, torch.bfloat16)
ARGUMENTS = "Tensor? seen, bool causal, float scale"
INPUTS = "Tensor q, Tensor k, Tensor v"
QUERIES = 64
"""Of a strip, as in `strips.h`."""

torch.library.define(
    "lit_small_lm::attention", f"({INPUTS}, {ARGUMENTS}) -> (Tensor, Tensor)", tags=torch.Tag.flexible_layout
)
torch.library.define(
    "lit_small_lm::attention_backward",
    f"(Tensor grad, {INPUTS}, Tensor out, Tensor logs, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.flexible_layout,
)


def takes(q: Tensor) -> bool:
    """Whether the kernel is there for these queries, and to be taken."""
    if not loaded() or not torch.compiler.is_compiling() or q.device.type != "cpu" or transformed():
        return False
    dtype = dtype_of(q)
    return dtype in DTYPES and not (TILES and dtype == torch.bfloat16)


def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """q (B, H, T, K), k (B, G, T, K), v (B, G, T, V) -> (B, H, T, V), stored as (B, T, H, V).

    Args:
        seen: (B, 1, S, T), or one row for all: whether a key (S) is seen by a query (T), as `Visibility.turned` says,
            of which every one sees a key; None: all that `causal` allows. Blocks of keys that none of 64 queries sees
            cost nothing.
        causal: a promise that no query sees what is behind it.
        scale: factor on the scores before the softmax; None: 1 / sqrt(K).

    Under autocast the inputs are rounded to its dtype, and the output is of it.
    """
    v = v.contiguous()  # often a part of one product with queries and keys, which would be kept whole
    q, k, v = (part.to(dtype_of(part)) for part in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return torch.ops.lit_small_lm.attention(q, k, v, seen, causal, scale)[0]


@torch.library.register_fake("lit_small_lm::attention")
def _(q, k, v, seen, causal, scale):
    return empty_like(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("lit_small_lm::attention_backward")
def _(grad, q, k, v, out, logs, seen, causal, scale):
    return tuple(empty_like(part, part.shape[3]) for part in (q, k, v))


def _keep(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, seen, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, seen)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    found = torch.ops.lit_small_lm.attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *found, None, None, None


torch.library.register_autograd("lit_small_lm::attention", _backward, setup_context=_keep)


def _computed(q: Sequence[int], causal: bool) -> int:
    """Pairs of a query and a key, in all rows and heads, of queries of this shape (B, H, T, K); more than are computed
    where a mask says so."""
    rows, heads, time = q[:3]
    ends = [min(first + QUERIES, time) for first in range(0, time, QUERIES)] if causal else [time]
    return rows * heads * sum((last - first) * last for first, last in itertools.pairwise([0, *ends]))


@register_flop_formula(torch.ops.lit_small_lm.attention)
def _flops(q, k, v, seen, causal, *args, out_shape=None, **kwargs) -> int:
    return 2 * _computed(q, causal) * (q[3] + v[3])


@register_flop_formula(torch.ops.lit_small_lm.attention_backward)
def _backward_flops(grad, q, k, v, out, logs, seen, causal, *args, out_shape=None, **kwargs) -> int:
    return 2 * _computed(q, causal) * (3 * q[3] + 2 * v[3])
