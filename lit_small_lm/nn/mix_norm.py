"""Mix-LN (arXiv 2412.13795): Post-LN in the first layers, Pre-LN in the others.

Post-LN's gradients are strong late and Pre-LN's early, so each is put where the other is weak. One path serves both: a
norm before the branch, or after the sum.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Branch, Concern, Norm, NormScheme, Site, setting


@dataclass(frozen=True, kw_only=True)
class MixNorm(NormScheme):
    """norm(x + branch(x)) in the first share of layers, x + branch(norm(x)) after it, and a final norm."""

    requires: ClassVar[tuple[Concern, ...]] = (
        Concern(
            "warmup", "its Post-LN layers need it; the authors advise a tenth of the run (pixeli99/MixLN, issue 1)"
        ),
    )
    norm: Norm = RMSNorm()
    """The operator, also of the final norm; where every layer is Post-LN there is none."""
    share: float = setting(0.25, low=0, high=1, unit="of the layers")
    """Layers that are Post-LN, rounded up; the paper takes 0.25, and 0.0625 for a model of 7B."""

    def build(self, site: Site) -> nn.Module:
        norm = self.norm.build(site.dim)
        post = site.layer < math.ceil(self.share * site.n_layers - 1e-9)  # 0.07 * 100 is 7.000000000000001
        return MixPath(nn.Identity(), norm) if post else MixPath(norm, nn.Identity())

    def close(self, dim: int) -> nn.Module:
        return nn.Identity() if self.share == 1 else self.norm.build(dim)


class MixPath(nn.Module):
    """after(x + branch(before(x))), where one of the two is the identity."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.after(x + branch(self.before(x)))
