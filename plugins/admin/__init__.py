"""Admin (arXiv 2004.08249): Post-LN whose stream weighs, before every branch, as much as what has gone into it.

norm(weight * x + branch(x)) with a learned weight for each channel. The one trick is where the weights start: the root
of 1 plus the variances of all earlier branches' outputs, which `profile` measures on a network before it is trained.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_small_lm.nn.norms import LayerNorm
from lit_small_lm.plugin import Branch, Concern, Norm, NormScheme, Site, setting


@dataclass(frozen=True, kw_only=True)
class Admin(NormScheme):
    """norm(weight * x + branch(x)) with a learned weight for each channel; there is no final norm."""

    requires: ClassVar[tuple[Concern, ...]] = (
        Concern("warmup", "it is Post-LN; its authors warm up as well (arXiv 2004.08249)"),
    )
    norm: Norm = LayerNorm()
    """The operator of every branch, and of the embedded tokens, so that the stream has variance one throughout."""
    variances: tuple[float, ...] = ()
    """Variance of what each branch puts out, two to a layer, as `profile` measures it; empty: `assumed` for all."""
    assumed: float = setting(1.0, low=0)
    """Variance of what a branch puts out, where none was measured."""

    def open(self, dim: int) -> nn.Module:
        return self.norm.build(dim)

    def build(self, site: Site) -> nn.Module:
        number = 2 * site.layer + (site.place == "ffn")
        earlier = [*self.variances[:number], *itertools.repeat(self.assumed, number - len(self.variances))]
        return WeightedPath(self.norm.build(site.dim), site.dim, start=(1 + sum(earlier)) ** 0.5)

    def close(self, dim: int) -> nn.Module:
        return nn.Identity()


class WeightedPath(nn.Module):
    """norm(weight * x + branch(x))."""

    def __init__(self, norm: nn.Module, dim: int, start: float) -> None:
        super().__init__()
        self.norm, self.start = norm, start
        self.weight = nn.Parameter(torch.full((dim,), start))

    def reset_parameters(self) -> None:
        """Every weight at its start."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(self.weight * x + branch(x))


@torch.no_grad()
def profile(net: nn.Module, run: Callable[[], object]) -> tuple[float, ...]:
    """The variances that `Admin` wants, measured in one forward pass of an untrained network.

    Every branch's weight is set on the way from what the branches before it have put out, as the paper does it.

    Args:
        net: a backbone whose norm scheme is Admin; its weights of the stream are left as measured.
        run: does the forward pass, on the tokens to measure with.
    """
    paths = [path for layer in net.layers for path in (layer.mixer_path, layer.ffn_path)]
    branches = [branch for layer in net.layers for branch in (layer.mixer, layer.ffn)]
    found: list[float] = []

    def weigh(path: nn.Module, args: object) -> None:
        path.weight.fill_((1 + sum(found)) ** 0.5)

    def note(branch: nn.Module, args: object, out: Tensor) -> None:
        found.append(out.float().var(unbiased=False).item())

    handles = [path.register_forward_pre_hook(weigh) for path in paths]
    handles += [branch.register_forward_hook(note) for branch in branches]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)
