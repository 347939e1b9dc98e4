"""From logits to draws: temperature, top-k and top-p (nucleus, arXiv 1904.09751), all in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_small_lm.errors import RunError


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, never: Sequence[int] = ()
) -> Tensor:
    """logits (B, V) -> probabilities (B, V) in float64, with at least one token left.

    Temperature 0 puts everything on the largest logit. Raises RunError when logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise RunError("the network's logits are not finite; the weights are damaged or training diverged")
    logits = logits.to(torch.float64, copy=True)
    logits[:, list(never)] = -torch.inf
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    below = logits - logits.max(-1, keepdim=True).values  # a tiny temperature must not overflow
    probs = torch.softmax(below / temperature, dim=-1)
    if top_k is not None and top_k < probs.shape[-1]:
        least = probs.topk(top_k).values[:, -1:]
        probs = probs.where(probs >= least, 0)
    if top_p < 1:
        ordered, order = probs.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens
        total = ordered.sum(-1, keepdim=True)
        probs = torch.zeros_like(probs).scatter(1, order, ordered.where(before < top_p * total, 0))
    return probs / probs.sum(-1, keepdim=True)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """probs (B, V), uniform (B,) in [0, 1) -> one id a row (B,), by inverting the cumulative distribution."""
    cumulative = probs.cumsum(-1)
    found = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True).squeeze(-1)
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(found, last)
