"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the matrices inside a network, AdamW for everything else.

Muon replaces a matrix's momentum by the nearest orthogonal one. Scaled to the size of AdamW's updates (arXiv
2502.16982), both take the same rate and decay. Fused projections (query, key and value; gate and up) are one matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lit_small_lm.plugin import Optim, Parameter, setting
from lit_small_lm.training.optim import JointOptimizer, groups_by_rule

NOT_MATRICES = ("embedding", "positions", "router", "head", "convolution", "norm", "bias", "other")
"""Roles that AdamW takes whatever their shape."""


@dataclass(frozen=True, kw_only=True)
class Muon(Optim):
    """Muon for projections inside the layers, AdamW for embeddings, head, routers, convolutions, norms and biases."""

    lr_ratio: float = setting(1.0, above=0, unit="of lr")
    """Learning rate of Muon's matrices; `original` updates want a larger one, such as 20."""
    momentum: float = setting(0.95, low=0, below=1)
    """Decay rate of Muon's mean of gradients (with Nesterov's look-ahead)."""
    ns_steps: int = setting(5, low=1, high=20)
    """Newton-Schulz steps towards the orthogonal matrix, in bfloat16."""
    update_size: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Muon's updates are scaled to the root mean square of AdamW's (lr and decay can be AdamW's), or as first
    published."""
    beta1: float = setting(0.9, low=0, below=1)
    """AdamW's decay rate of the mean of gradients."""
    beta2: float = setting(0.95, low=0, below=1)
    """AdamW's decay rate of the mean of squared gradients."""
    eps: float = setting(1e-8, above=0)
    """AdamW's, added to the root of the second moment."""
    weight_decay: float = setting(0.1, low=0, unit="per unit of learning rate")
    """Decoupled weight decay of both."""

    def build(self, parameters: Sequence[Parameter], fused: bool) -> torch.optim.Optimizer:
        matrices, others = [], []
        for parameter in parameters:
            if is_matrix(parameter):
                matrices.append(parameter._replace(lr_scale=parameter.lr_scale * self.lr_ratio))
            else:
                others.append(parameter)
        parts: list[torch.optim.Optimizer] = []
        if others:
            groups = groups_by_rule(others, self.lr, self.weight_decay, eps=self.eps)
            parts.append(torch.optim.AdamW(groups, betas=(self.beta1, self.beta2), fused=fused))
        if matrices:
            groups = groups_by_rule(matrices, self.lr, self.weight_decay)
            settings = {"momentum": self.momentum, "ns_steps": self.ns_steps, "adjust_lr_fn": self.update_size}
            parts.append(torch.optim.Muon(groups, **settings))
        return JointOptimizer(parts)


def is_matrix(parameter: Parameter) -> bool:
    """Whether Muon takes a parameter: the weight of a projection inside the network, by its role."""
    return parameter.tensor.ndim == 2 and parameter.role not in NOT_MATRICES
