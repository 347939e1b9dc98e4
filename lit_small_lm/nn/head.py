"""The output head's loss: negative log-likelihood of each target without the (B, T, V) tensor at full size.

PyTorch's `linear_cross_entropy` reduces over tokens in its chunked form; objectives weight each token, so the chunks
here are recomputed in the backward pass instead (cut in the spirit of arXiv 2411.09009).
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 26
"""Logits held at once; fewer are scored in one piece."""


def token_nll(h: Tensor, weight: Tensor, targets: Tensor, chunk_logits: int = CHUNK_LOGITS) -> Tensor:
    """h (M, D), weight (V, D), targets (M,) -> negative log-likelihood of each target in nats, (M,) float32."""
    rows = max(1, chunk_logits // weight.shape[0])
    if rows >= h.shape[0]:
        return plain_nll(h, weight, targets)
    pieces = zip(h.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(plain_nll, part, weight, wanted, use_reentrant=False) for part, wanted in pieces])


def plain_nll(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The plain twin, with all logits at once."""
    logits = F.linear(h, weight)  # (M, V)
    return F.cross_entropy(logits if logits.dtype.itemsize >= 4 else logits.float(), targets, reduction="none")
