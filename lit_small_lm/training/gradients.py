"""Norm and scaling of gradients, whole or sharded: each process works on its parts, and the norm is that of all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_small_lm.sharding import is_sharded, local


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, the same on every process."""
    if not any(map(is_sharded, gradients)):
        return _norm_of(torch._foreach_norm(gradients))
    groups: dict[tuple[Any, ...], list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(_sharded_over(gradient), []).append(local(gradient))
    norms = [_over_processes(_norm_of(torch._foreach_norm(parts)), axes) for axes, parts in groups.items()]
    return norms[0] if len(norms) == 1 else _norm_of(norms)


def _norm_of(norms: Sequence[Tensor]) -> Tensor:
    """The norm of tensors of which these are the norms."""
    return torch.linalg.vector_norm(torch.stack(norms))


def scale_gradients(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply every gradient, in place."""
    sharded = any(map(is_sharded, gradients))
    torch._foreach_mul_([local(gradient) for gradient in gradients] if sharded else gradients, factor)


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What an optimizer's `zero_grad` does, without the record that it keeps for profilers."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def clip_values(gradients: Sequence[Tensor], limit: float) -> None:
    """Limit the size of every entry, in place."""
    for gradient in gradients:
        local(gradient).clamp_(-limit, limit)


def _sharded_over(gradient: Tensor) -> tuple[Any, ...]:
    """The (mesh, axis) pairs over which a gradient is cut; none for a whole one."""
    if not is_sharded(gradient):
        return ()
    mesh, placements = gradient.device_mesh, gradient.placements
    return tuple((mesh, axis) for axis, placement in enumerate(placements) if not placement.is_replicate())


def _over_processes(norm: Tensor, axes: tuple[Any, ...]) -> Tensor:
    """The norm of the whole of which each process has `norm` in its parts."""
    if not axes:
        return norm
    square = norm.square()
    for mesh, axis in axes:
        torch.distributed.all_reduce(square, group=mesh.get_group(axis))
    return square.sqrt()
