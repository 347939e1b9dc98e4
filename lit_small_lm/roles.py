"""Roles of parameters: what Init and the optimizer's parameter groups go by, instead of names.

Roles are embedding, positions, qkv, out, gate_up, up, down, head and convolution for weights, norm for vectors, bias,
and other. Init draws the weights of `Linear` and `Embedding`; other modules draw their own in `reset_parameters`.
"""

from torch import Tensor, nn


class Roled:
    """A module whose weights have a role."""

    role: str
    groups: int | None = None
    """Equal groups of consecutive output channels that do not need each other up to the next "out" or "down": between
    groups tensor parallelism may cut. None: it may not."""


class Linear(Roled, nn.Linear):
    """A linear map that knows its role; `factor` multiplies the standard deviation its weights start from."""

    def __init__(
        self, n_in: int, n_out: int, *, role: str, bias: bool = False, factor: float = 1.0, groups: int | None = None
    ) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.role, self.factor, self.groups = role, factor, groups


class Embedding(Roled, nn.Embedding):
    """A table of vectors that knows its role."""

    factor = 1.0

    def __init__(self, count: int, dim: int, *, role: str) -> None:
        super().__init__(count, dim)
        self.role = role

    def reset_parameters(self) -> None:
        """Standard normal, as PyTorch's; nothing on the meta device, where finding that out takes torch a second."""
        if not self.weight.is_meta:
            super().reset_parameters()


def parameter_role(module: nn.Module, name: str, tensor: Tensor) -> str:
    """The role of a module's own parameter: the module's, "bias", "norm" for vectors, "other" for the rest."""
    if name.endswith("bias"):
        return "bias"
    if isinstance(module, Roled):
        return module.role
    return "norm" if tensor.ndim < 2 else "other"
