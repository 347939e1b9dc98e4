"""The figures of depth telemetry as formulas over tensors: one number for every position, in float32 or better.

Angular distance between the stream before and after a layer (arXiv 2403.17887), Block Influence (arXiv 2403.03853),
the share that a branch adds to the stream (arXiv 2505.13898), entropy of attention (arXiv 2303.06296), dead units
(arXiv 2309.04827). The one trick: angles are taken from the sum and the difference of unit vectors, never from an arc
cosine, which near a cosine of one knows no angle below 1e-4.
"""

import math

import torch
from torch import Tensor

DEAD = 0.01
"""A unit is dead if no position moves it by more than this share of what the layer's units are, in root mean square."""


def exact(x: Tensor) -> Tensor:
    """x in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def variance(x: Tensor) -> Tensor:
    """x (B, T, D) -> (B, T), the variance over channels: mean of (x - mean)^2."""
    return exact(x).var(-1, unbiased=False)


def root_mean_square(h: Tensor) -> Tensor:
    """h (B, T, D) -> (B, T), sqrt(mean of h^2 over channels)."""
    return exact(h).square().mean(-1).sqrt()


def update_ratio(change: Tensor, x: Tensor) -> Tensor:
    """change and x (B, T, D) -> (B, T), ||change|| / ||x||."""
    size, norm = exact(change).norm(dim=-1), exact(x).norm(dim=-1)
    return size / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def turn(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (B, T, D) -> angular distance arccos(cos(x, y)) / pi, 0 to 1, and Block Influence 1 - cos(x, y), 0 to 2,
    (B, T) each."""
    x, y = (torch.nn.functional.normalize(exact(part), dim=-1) for part in (x, y))
    apart, together = (x - y).norm(dim=-1), (x + y).norm(dim=-1)
    return 2 * torch.atan2(apart, together) / math.pi, apart.square() / 2


def attention_entropy(q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """The entropy of every query's attention weights in nats, 0 (one key) to log S (all alike), averaged over heads.

    Args:
        q: (B, H, T, K) queries.
        k: (B, G, S, K) keys; G divides H.
        mask: what is seen, booleans that broadcast to (B, H, T, S), or what is added to the scores; None: everything.
        scale: factor on the scores; None: 1 / sqrt(K).

    Returns:
        (B, T): -sum over keys of p log p.
    """
    with torch.autocast(q.device.type, enabled=False):
        keys = exact(k).repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H, S, K)
        scores = exact(q) @ keys.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.special.entr(torch.softmax(scores, dim=-1)).sum(-1).mean(1)


def dead_units(hidden: Tensor, counted: Tensor) -> Tensor:
    """hidden (B, T, F), counted (B, T) booleans -> the share of units, a 0-d tensor, that no counted position moves by
    more than `DEAD` times the root mean square over all of them; of ReLU's units, those that are zero throughout."""
    sizes = exact(hidden).abs() * counted.unsqueeze(-1)
    typical = (sizes.square().sum() / (counted.sum() * hidden.shape[-1]).clamp(min=1)).sqrt()
    largest = sizes.flatten(0, 1).amax(0)  # (F,)
    return (largest <= DEAD * typical).to(sizes).mean()
