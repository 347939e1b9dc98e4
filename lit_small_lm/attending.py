"""Softmax attention by the fastest way there is; every mixer that has queries, keys and values calls `attend`.

`nn.attention.plain_attention` with the dense mask is the plain twin of all ways.
"""

from torch import Tensor
from torch.nn import functional as F

from lit_small_lm.context import Context
from lit_small_lm.flex import has_kernel, tiled_attention


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

    Which way is taken is decided here alone: where a mask is needed, FlexAttention on CUDA, unless keys come from a
    cache, weights are dropped or it has no kernel for the widths; otherwise PyTorch's fused kernel.

    Args:
        window: visible keys, the query included; None: all.
        scale: factor on the scores before the softmax; None: 1 / sqrt(K).
        dropout: probability of dropping an attention weight.
    """
    if masked(ctx, window) and not dropout and has_kernel(q, v):
        return tiled_attention(q, k, v, ctx.block_mask(window), scale)
    mask, causal = ctx.mask(window), ctx.visibility.kind == "causal"
    if mask is not None and k.shape[1] < q.shape[1]:  # the fused kernels take a mask or grouped heads, not both
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=k.shape[1] < q.shape[1],
    )


def masked(ctx: Context, window: int | None) -> bool:
    """Whether whole rows are read that need a mask, and any way of using it will do."""
    if ctx.cache is not None or ctx.attention == "dense":
        return False
    return window is not None or not ctx.visibility.whole
