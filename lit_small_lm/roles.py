"""What modules declare of themselves, so that nothing goes by their names.

Roles of parameters are what Init and the optimizer's parameter groups go by: embedding, positions, qkv, out, gate_up,
up, down, router, head and convolution for weights, norm for vectors, bias, and other. Init draws the weights of
`Linear` and `Embedding`; other modules draw their own in `reset_parameters`. `Sparse` says which share of its members
a token uses, `Stepped` which state moves once per optimizer step, `TwoMaps` which branches can be computed together.
"""

import abc
from collections.abc import Callable, Hashable, Iterable
from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_small_lm.products import linear


class Roled:
    """A module whose weights have a role."""

    role: str
    groups: int | None = None
    """Equal groups of consecutive output channels that do not need each other up to the next "out" or "down": between
    groups tensor parallelism may cut. None: it may not."""
    layer: int | None = None
    """Index of the layer it belongs to, from 0; None outside the layers."""


class Linear(Roled, nn.Linear):
    """A linear map that knows its role; `factor` multiplies the standard deviation its weights start from."""

    def __init__(
        self, n_in: int, n_out: int, *, role: str, bias: bool = False, factor: float = 1.0, groups: int | None = None
    ) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.role, self.factor, self.groups = role, factor, groups
        self.values: slice | None = None
        """The output channels of each group that are values of attention (role "v"), where a norm scheme may scale them
        apart from queries and keys."""
        self.values_factor = 1.0

    def place_in(self, layer: int, factor_of: Callable[[str], float]) -> None:
        """Belong to a layer, whose norm scheme has a factor for each role."""
        self.layer, self.factor = layer, factor_of(self.role)
        self.values_factor = 1.0 if self.values is None else factor_of("v")

    def forward(self, h: Tensor) -> Tensor:
        return linear(h, self.weight, self.bias)

    def draw(self, std: float) -> None:
        """Draw the weight from a normal distribution, times the factors; biases are zero."""
        nn.init.normal_(self.weight, std=std * self.factor)
        if self.values_factor != 1.0:
            self.weight.unflatten(0, (self.groups, -1))[:, self.values] *= self.values_factor
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(Roled, nn.Embedding):
    """A table of vectors that knows its role."""

    def __init__(self, count: int, dim: int, *, role: str) -> None:
        super().__init__(count, dim)
        self.role = role

    def draw(self, std: float) -> None:
        """Draw the table from a normal distribution."""
        nn.init.normal_(self.weight, std=std)

    def reset_parameters(self) -> None:
        """Standard normal, as PyTorch's; nothing on the meta device, where finding that out takes torch a second."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Sparse(nn.ModuleList):
    """Modules of one size of which every token goes through `used`: of their parameters, `share` are active."""

    def __init__(self, members: Iterable[nn.Module], used: int) -> None:
        super().__init__(members)
        self.used = used

    @property
    def share(self) -> Fraction:
        """What part of the members' parameters a token goes through; exact, so that counts stay whole numbers."""
        return Fraction(self.used, len(self))


class Stepped(abc.ABC):
    """A module with buffers that move once per optimizer step, by what was tallied while it ran.

    They are part of a checkpoint though no parameters. While training, `forward` leaves a tally of the batch under
    `address` in `ctx.trace.tallies`; `after_step` gets their sum over accumulated batches and all shares of the data.
    """

    moving: ClassVar[tuple[str, ...]]
    """Names of the buffers."""
    address: Hashable
    """The module's key among the tallies."""

    @abc.abstractmethod
    def reset_moving(self) -> None:
        """Set the buffers to what training starts from."""

    @abc.abstractmethod
    def after_step(self, tally: Tensor) -> None:
        """Move the buffers, in place and the same on every process."""


def moving_buffers(module: nn.Module) -> set[str]:
    """Full names of all buffers that `Stepped` modules in a module declare."""
    steppers = ((prefix, inner) for prefix, inner in module.named_modules() if isinstance(inner, Stepped))
    return {f"{prefix}.{name}" if prefix else name for prefix, inner in steppers for name in inner.moving}


class TwoMaps(nn.Module, abc.ABC):
    """A branch of two linear maps with something position by position between them.

    Several that differ in their weights alone can then be computed together, each on its own positions.
    """

    @abc.abstractmethod
    def maps(self) -> tuple[Linear, Linear]:
        """The map into the branch and the one out of it."""

    @abc.abstractmethod
    def run(self, h: Tensor, ctx: Any, into: Callable[[Tensor], Tensor], out_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The branch with other maps in the place of its own: h (B, T, D) -> (B, T, D)."""

    def forward(self, h: Tensor, ctx: Any) -> Tensor:
        return self.run(h, ctx, *self.maps())


def parameter_role(module: nn.Module, name: str, tensor: Tensor) -> str:
    """The role of a module's own parameter: the module's, "bias", "norm" for vectors, "other" for the rest."""
    if name.endswith("bias"):
        return "bias"
    if isinstance(module, Roled):
        return module.role
    return "norm" if tensor.ndim < 2 else "other"
