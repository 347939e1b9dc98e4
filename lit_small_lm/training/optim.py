"""Optimizers with parameter groups by rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lit_small_lm.plugin import Optim, Parameter, setting


@dataclass(frozen=True, kw_only=True)
class AdamW(Optim):
    """AdamW (arXiv 1711.05101); no decay on norms, biases and embeddings."""

    beta1: float = setting(0.9, low=0, below=1)
    """Decay rate of the mean of gradients."""
    beta2: float = setting(0.95, low=0, below=1)
    """Decay rate of the mean of squared gradients."""
    eps: float = setting(1e-8, above=0)
    """Added to the root of the second moment, times what the init says of a role."""
    weight_decay: float = setting(0.1, low=0, unit="per unit of learning rate")
    """Decoupled weight decay."""

    def build(self, parameters: Sequence[Parameter], fused: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups_by_rule(parameters, self.lr, self.weight_decay, eps=self.eps),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            fused=fused,
        )


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers as one: Lightning's automatic optimisation, schedules, clipping and checkpoints see one.

    Args:
        parts: optimizers over different parameters; their groups follow each other in `param_groups`.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = iter(self.param_groups)
        for part in self.parts:  # loading a state dict makes groups and state anew, so they are shared at every step
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
            part.step()
        return loss


def groups_by_rule(
    parameters: Sequence[Parameter], lr: float, weight_decay: float, **adam: float
) -> list[dict[str, object]]:
    """One group for each (decay, lr_scale, eps_scale) among the parameters, in order of first appearance.

    Args:
        parameters: all of them.
        lr: the base rate.
        weight_decay: that of a factor of 1.
        adam: `eps`, where the optimizer has Adam's.
    """
    groups: dict[tuple[float, ...], dict[str, object]] = {}
    for name, tensor, _, decay, scale, eps_scale in parameters:
        settings = {"weight_decay": weight_decay * decay, "lr": lr * scale, "lr_scale": scale}
        settings |= {key: value * eps_scale for key, value in adam.items()}
        group = groups.setdefault((decay, scale, eps_scale), {"params": [], **settings})
        group["params"].append((name, tensor))
    return list(groups.values())
