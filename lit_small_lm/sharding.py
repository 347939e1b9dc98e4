"""Sharded tensors: what a whole tensor and the part of it that this process holds have to do with each other.

A sharded parameter is a `DTensor`. Whole tensors are cut without communication: every process has, or draws, the same
whole tensor and keeps its part, so that a network sharded in any way starts from the weights of one process, bit for
bit, and never holds more than one parameter in full.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Any) -> bool:
    """Whether this is a tensor of which every process holds a part."""
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_initialized():
        return False  # spares models that are loaded without training the import
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part this process holds; a plain tensor is all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered; every process has to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a whole `tensor` that is sharded `like` another one of its shape.

    Tensor parallelism cuts first, then the cut pieces are sharded along their first dimension: the last dimension of
    the mesh is the first to cut.
    """
    from torch.distributed.tensor import Replicate

    where, mesh = like.device_mesh.get_coordinate(), like.device_mesh
    for axis in reversed(range(mesh.ndim)):
        placement = like.placements[axis]
        if not isinstance(placement, Replicate):
            pieces = tensor.chunk(mesh.size(axis), placement.dim)
            empty = tensor.narrow(placement.dim, 0, 0)
            tensor = pieces[where[axis]] if where[axis] < len(pieces) else empty
    return tensor


def sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded like another one of its shape; where that is plain, or of another shape, as it is."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor

    piece = part_of(tensor, like).to(like.device).clone(memory_format=torch.contiguous_format)  # the whole may go
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`module.load_state_dict` of whole tensors, whatever the module's are. Raises RuntimeError as it does."""
    own = module.state_dict()
    module.load_state_dict({name: sharded(value, own[name]) if name in own else value for name, value in state.items()})


@contextlib.contextmanager
def drawn_whole(module: nn.Module) -> Iterator[None]:
    """Within it a module's own parameters are whole and on the CPU, to be drawn; after it their parts are kept.

    A draw is then the same on every device. On the meta device nothing is held, and nothing is drawn.
    """
    held = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    moved = {name: tensor for name, tensor in held.items() if is_sharded(tensor) or tensor.device.type == "cuda"}
    for name, tensor in moved.items():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        module._parameters[name] = nn.Parameter(empty, tensor.requires_grad)
    try:
        yield
        for name, tensor in moved.items():
            drawn = module._parameters[name].detach()
            local(tensor.detach()).copy_(part_of(drawn, tensor) if is_sharded(tensor) else drawn)
    finally:
        module._parameters.update(held)
