"""Softmax attention by the fastest way there is; every mixer that has queries, keys and values calls `attend`.

`nn.attention.plain_attention` with the dense mask is the plain twin of all ways.
"""

import contextlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_small_lm.context import Context
from lit_small_lm.flex import has_kernel, tiled_attention
from lit_small_lm.kernels.attention import kernel_attention, takes
from lit_small_lm.pieces import Division, spares
from lit_small_lm.piecewise import LONGEST_CAUSAL, pays, pays_without_sparing, piecewise_attention

ANY_KERNEL = contextlib.nullcontext()
WIDEST = 1 << 40
"""More columns than any row has."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ctx: Context,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """q (B, H, T, K), k (B, G, S, K), v (B, G, S, V) -> (B, H, T, V), over what the Visibility shows.

    Which way is taken is decided here alone. Where whole rows need a mask and no weights are dropped: FlexAttention on
    CUDA, if it has a kernel for the widths. On a CPU our own kernel where the network is compiled, otherwise pieces of
    rows, also of causal ones that need none, and a cache of many short rows in one sweep. Elsewhere one call of
    PyTorch's fused kernel.

    Args:
        window: visible keys, the query included; None: all.
        scale: factor on the scores before the softmax; None: 1 / sqrt(K).
        dropout: probability of dropping an attention weight.
    """
    by_parts = ctx.cache is None and not dropout and ctx.attention != "dense"
    whole = by_parts and window is None and ctx.visibility.whole
    if by_parts and not whole and has_kernel(q, v):
        return tiled_attention(q, k, v, ctx.block_mask(window), scale)
    if by_parts and takes(q):
        return kernel_attention(q, k, v, ctx.seen(window), ctx.visibility.kind == "causal", scale)
    if by_parts and pays(q):
        if whole and ctx.visibility.kind == "causal":
            if q.shape[2] < LONGEST_CAUSAL:
                return piecewise_attention(q, k, v, None, scale)
        elif has_one_width(q) and (pays_without_sparing(q) or spares(ctx.visibility, window)):
            made = ctx.trace.once(("pieces", window), lambda: Division.of(ctx.visibility, window))
            return piecewise_attention(q, k, v, made, scale)
    mask, causal = ctx.mask(window), False
    if mask is None and q.shape[2] == 1 and sweeps(q, k, ctx) and not dropout:
        return swept_attention(q, k, v, scale)
    if mask is not None:
        k, v = ungrouped(q, k, v)
    elif q.shape[2] > 1:  # a branch: of a width that varies, the kernel would not take the comparison itself
        causal = ctx.visibility.kind == "causal"
    grouped = k.shape[1] < q.shape[1]
    with planless() if q.is_cuda and growing(ctx) else ANY_KERNEL:
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
        )


def has_one_width(q: Tensor) -> bool:
    """Whether queries (B, H, T, K) have a width that is known; where one graph is compiled for many, Inductor (torch
    2.13) fails at what pieces make of it."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(q.shape[2] < WIDEST)


def sweeps(q: Tensor, k: Tensor, ctx: Context) -> bool:
    """Whether there is one query for each head, whose keys a cache has laid position by position."""
    laid = ctx.cache is not None and k.is_cpu and k.stride(1) < k.stride(2)
    return laid and q.shape[1:3] == (k.shape[1], 1)


def swept_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """q (B, H, 1, K), k (B, H, S, K), v (B, H, S, V) -> (B, H, 1, V), where every key is seen.

    Two sweeps over memory, as it lies. The fused kernel goes from head to head and waits for the first keys of each.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (k * (q * scale)).sum(-1).contiguous()  # (B, H, S)
    return (v * torch.softmax(scores, dim=-1).unsqueeze(-1)).sum(2, keepdim=True)


def growing(ctx: Context) -> bool:
    """Whether there are more keys at every call."""
    return ctx.cache is not None and ctx.cache.written and not torch.compiler.is_compiling()


def planless() -> contextlib.AbstractContextManager[None]:
    """PyTorch's own kernels alone: cuDNN's makes a plan for every number of keys, which takes longer than a token."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def ungrouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for every query head: the fused kernels take a mask or grouped heads, not both."""
    if k.shape[1] == q.shape[1]:
        return k, v
    return tuple(part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
