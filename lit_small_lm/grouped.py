"""The grouped product: rows that lie sorted by group, each times its group's matrix, in one operation.

The trick: one operator of our own around `torch.nn.functional.grouped_mm`, which compiles, runs on the meta device and
is counted whatever the dtype; inside it the plain loop steps in where PyTorch's kernel does not go (float64, rows that
are no multiple of 16 bytes). It takes the matrices one by one and stacks them for the moment of the product only, so
that nothing but rows and weights is kept for the backward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


def grouped_linear(rows: Tensor, weights: Sequence[Tensor], ends: Tensor) -> Tensor:
    """rows (R, D) sorted by group, weights E x (F, D), ends (E,) int32: row after each group's last -> (R, F).

    Under autocast it runs in its dtype, as a linear map does; the weights' gradients have their own.
    """
    device = rows.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        rows = rows.to(torch.get_autocast_dtype(device))
    return _product(rows, list(weights), ends)


def plain_product(rows: Tensor, stacked: Tensor, ends: Tensor) -> Tensor:
    """The plain twin: rows (R, D), stacked (E, D, F) -> (R, F), one product a group."""
    pieces = rows.tensor_split(ends[:-1].long().cpu())
    return torch.cat([piece @ matrix for piece, matrix in zip(pieces, stacked, strict=True)])


def plain_outer(grad: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """The plain twin of the weights' gradients: grad (R, F), rows (R, D) -> (E, F, D)."""
    cuts = ends[:-1].long().cpu()
    pairs = zip(grad.tensor_split(cuts), rows.tensor_split(cuts), strict=True)
    return torch.stack([one.T @ other for one, other in pairs])


def kernel_takes(*widths: int, like: Tensor) -> bool:
    """Whether PyTorch's kernel can do a product of these widths in the dtype, and on the device, of a tensor."""
    aligned = all(width * like.element_size() % 16 == 0 for width in widths)
    if like.device.type == "cuda":
        return aligned and like.dtype == torch.bfloat16 and torch.cuda.get_device_capability(like.device) >= (8, 0)
    return aligned and like.dtype in (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("lit_small_lm::grouped_linear", mutates_args=())
def _product(rows: Tensor, weights: Sequence[Tensor], ends: Tensor) -> Tensor:
    stacked = torch.stack([weight.to(rows.dtype) for weight in weights]).transpose(1, 2)  # (E, D, F)
    if kernel_takes(*stacked.shape[1:], like=rows):
        return F.grouped_mm(rows, stacked, offs=ends)
    return plain_product(rows, stacked, ends)


@_product.register_fake
def _(rows: Tensor, weights: Sequence[Tensor], ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights[0].shape[0])


@torch.library.custom_op("lit_small_lm::grouped_linear_backward", mutates_args=())
def _gradients(grad: Tensor, rows: Tensor, weights: Sequence[Tensor], ends: Tensor) -> tuple[Tensor, Tensor]:
    grad = grad.contiguous()  # the kernel refuses an expanded one
    stacked = torch.stack([weight.to(rows.dtype) for weight in weights])  # (E, F, D)
    if kernel_takes(*stacked.shape[1:], like=rows):
        of_weights = F.grouped_mm(grad.T, rows, offs=ends)
        return F.grouped_mm(grad, stacked, offs=ends), of_weights.to(weights[0].dtype)
    return plain_product(grad, stacked, ends), plain_outer(grad, rows, ends).to(weights[0].dtype)


@_gradients.register_fake
def _(grad: Tensor, rows: Tensor, weights: Sequence[Tensor], ends: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), weights[0].new_empty(len(weights), *weights[0].shape)


def _keep(ctx, inputs, output) -> None:
    rows, weights, ends = inputs
    ctx.save_for_backward(rows, ends, *weights)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, list[Tensor], None]:
    rows, ends, *weights = ctx.saved_tensors
    of_rows, of_weights = _gradients(grad, rows, weights, ends)
    return of_rows, list(of_weights.unbind(0)), None


_product.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.lit_small_lm.grouped_linear)
def _product_flops(rows, weights, ends, *args, out_shape=None, **kwargs) -> int:
    return 2 * rows[0] * weights[0][0] * weights[0][1]


@register_flop_formula(torch.ops.lit_small_lm.grouped_linear_backward)
def _gradient_flops(grad, rows, weights, ends, *args, out_shape=None, **kwargs) -> int:
    return 2 * _product_flops(rows, weights, ends)
