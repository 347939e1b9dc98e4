"""ProRes (arXiv 2603.05369): branches fade in while training, early layers before deep ones, under any norm scheme.

Layer l counts fully after l times `steps` optimizer steps. The share is computed from the step, never stored: a network
outside training has no step, and is the one that the ramp ends with.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lit_small_lm.plugin import Branch, Concern, NormScheme, Site, setting

UNDONE = "it norms what a branch puts out, which undoes the fading in"


@dataclass(frozen=True, kw_only=True)
class ProRes(NormScheme):
    """Another scheme whose branch outputs are multiplied by min(step / (layer number * steps), 1)."""

    scheme: NormScheme
    """The scheme that the branches join by: PreNorm, LayerNormScaling, PostNorm, DeepNorm, ..."""
    steps: int = setting(1000, low=1, unit="optimizer steps a layer")
    """Steps until the first layer counts fully; each further one takes that many more. The paper takes 500 beyond 72
    layers."""

    @property
    def requires(self) -> tuple[Concern, ...]:
        """What the inner scheme requires."""
        return self.scheme.requires

    @property
    def conflicts(self) -> tuple[Concern, ...]:
        """What the inner scheme conflicts with, and schemes that would undo the ramp."""
        undone = tuple(Concern(name, UNDONE, "error") for name in ("PeriNorm", "ReorderedNorm", "SandwichNorm"))
        return (*self.scheme.conflicts, *undone)

    def open(self, dim: int) -> nn.Module:
        return self.scheme.open(dim)

    def build(self, site: Site) -> nn.Module:
        return RampedPath(self.scheme.build(site), self.steps * (site.layer + 1))

    def close(self, dim: int) -> nn.Module:
        return self.scheme.close(dim)

    def branch_init(self, site: Site, role: str) -> float:
        return self.scheme.branch_init(site, role)

    def ramp(self, n_layers: int) -> int:
        return max(self.steps * n_layers, self.scheme.ramp(n_layers))


class RampedPath(nn.Module):
    """path(carry, share * branch), the share rising from 0 to 1 over `steps` optimizer steps."""

    def __init__(self, path: nn.Module, steps: int) -> None:
        super().__init__()
        self.path, self.steps = path, steps

    def forward(self, carry: Tensor, branch: Branch) -> Tensor:
        step = branch.ctx.step
        if step is None:
            return self.path(carry, branch)
        share = (step / self.steps).clamp(max=1)
        return self.path(carry, Branch(lambda h: share * branch(h), branch.ctx))
