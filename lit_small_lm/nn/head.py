"""The output head's loss: negative log-likelihood of each target without the (B, T, V) tensor at full size.

PyTorch's `linear_cross_entropy` reduces over tokens in its chunked form; objectives weight each token, so the chunks
here are recomputed in the backward pass instead (cut in the spirit of arXiv 2411.09009).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 26
"""Logits held at once; fewer are scored in one piece."""


def token_nll(
    h: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """h (M, D), weight (V, D), targets (M,) -> negative log-likelihood of each target in nats, (M,) float32."""
    return _in_pieces(plain_nll, h, weight, targets, softcap, chunk_logits)


def token_nll_and_z(
    h: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """Like `token_nll`, (2, M): beside it the squared logarithm of the softmax's normaliser at each position."""
    return _in_pieces(plain_nll_and_z, h, weight, targets, softcap, chunk_logits)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap tanh(logits / softcap), or the logits as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def plain_nll(h: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """The plain twin of `token_nll`, with all logits at once."""
    return F.cross_entropy(_logits(h, weight, softcap), targets, reduction="none")


def plain_nll_and_z(h: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """The plain twin of `token_nll_and_z`, with all logits at once."""
    logits = _logits(h, weight, softcap)
    nll = F.cross_entropy(logits, targets, reduction="none")
    return torch.stack([nll, torch.logsumexp(logits, dim=-1).square()])


def _logits(h: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    logits = F.linear(h, weight)  # (M, V)
    return capped(logits if logits.dtype.itemsize >= 4 else logits.float(), softcap)


def _in_pieces(
    score: Callable[..., Tensor],
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    chunk_logits: int,
) -> Tensor:
    rows = max(1, chunk_logits // weight.shape[0])
    if rows >= h.shape[0]:
        return score(h, weight, targets, softcap)
    pieces = zip(h.split(rows), targets.split(rows), strict=True)
    found = [checkpoint(score, part, weight, wanted, softcap, use_reentrant=False) for part, wanted in pieces]
    return torch.cat(found, dim=-1)
