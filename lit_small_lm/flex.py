"""FlexAttention (arXiv 2412.05496): masks that are asked for pair by pair within the kernel and never stored.

A `BlockMask` says which tiles of pairs are seen wholly, in part or not at all; what is not seen is not computed. The
trick is that a tile seen in part asks `Visibility.visible` itself, so that there is one place that knows who sees whom.
Rows of one document lie alike in every batch, and their masks are kept; of packed rows they are made once a forward
pass. The kernels exist on CUDA; elsewhere FlexAttention computes every pair, and no gradients on a CPU.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lit_small_lm.visibility import Layout, Place, Visibility

WIDTHS = (16, 32, 64, 128)
"""Channels of a head that there are kernels for."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEPT = 64
"""Masks of layouts that are kept, the latest ones."""


def has_kernel(q: Tensor, v: Tensor) -> bool:
    """Whether there is a kernel for these queries and values."""
    return q.is_cuda and q.dtype in DTYPES and q.shape[-1] in WIDTHS and v.shape[-1] in WIDTHS


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float | None = None) -> Tensor:
    """q (B, H, T, K), k (B, G, T, K), v (B, G, T, V) -> (B, H, T, V).

    `nn.attention.plain_attention` with the dense mask is the plain twin.
    """
    q, k, v = _autocast(q, k, v)
    return _fused(flex_attention)(q, k, v, block_mask=mask, scale=scale, enable_gqa=k.shape[1] < q.shape[1])


def block_mask(view: Visibility, window: int | None = None) -> BlockMask:
    """The mask of whole rows without a cache; that of a layout is made once where nothing is being compiled."""
    if view.layout is None:
        return _made(view, window)
    make = _made_of_layout if torch.compiler.is_compiling() else _kept
    return make(view.layout, window, view.positions.device)


def _made_of_layout(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # the next step may train with it
        return _made(Visibility.laid_out(layout, device), window)


_kept = functools.lru_cache(KEPT)(_made_of_layout)


def _made(view: Visibility, window: int | None) -> BlockMask:
    rows, time = view.positions.shape
    device = view.positions.device
    with torch.no_grad():
        return _fused(create_block_mask)(rule(view, window), rows, None, time, time, device=device)


def rule(view: Visibility, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query of a row sees a key, as FlexAttention asks: by row, head and their two columns.

    One row stands for all rows of a batch. What is seen by chance is drawn once, and then looked up.
    """
    if view.kind == "annealed":
        table = view.dense(window=window)[:, 0]  # (B, T, T)
        return lambda b, h, q, k: table[b, q, k]
    own = _in_kernel(view)
    if len(view.positions) > 1:
        return lambda b, h, q, k: view.visible(own.at(b, q), own.at(b, k), window)
    row = own.at(0)
    return lambda b, h, q, k: view.visible(row.at(q), row.at(k), window)


def _in_kernel(view: Visibility) -> Place:
    """Where positions stand, in numbers of 32 bits and with blocks worked out: a kernel asks for every pair of a tile
    that is seen in part, and divides slowly."""
    own = view.place
    place = own._replace(block=view.block(own.position))
    return Place(*(part if part is None or part.dtype == torch.bool else part.to(torch.int32) for part in place))


def _autocast(*parts: Tensor) -> tuple[Tensor, ...]:
    """What PyTorch's own attention does under autocast: all parts in its type."""
    device = parts[0].device.type
    if not torch.is_autocast_enabled(device):
        return parts
    return tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)


def _fused(function: Callable) -> Callable:
    """The function compiled, once; within a network that is being compiled, as it is."""
    return function if torch.compiler.is_compiling() else _compiled(function)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)
