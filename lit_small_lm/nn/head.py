"""The output head's loss: negative log-likelihood of each target without the (B, T, V) tensor at full size.

PyTorch's `linear_cross_entropy` reduces over tokens in its chunked form; objectives weight each token, so the chunks
here are recomputed in the backward pass instead (cut in the spirit of arXiv 2411.09009).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 26
"""Logits held at once; fewer are scored in one piece."""


def token_nll(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    chunk_logits: int = CHUNK_LOGITS,
    impossible: Sequence[int] = (),
) -> Tensor:
    """h (M, D), weight (V, D), targets (M,) -> negative log-likelihood of each target in nats, (M,) float32.

    Ids that are `impossible` are left out of the softmax, and their logits have no gradient.
    """
    return _in_pieces(plain_nll, h, weight, targets, softcap, chunk_logits, impossible)


def token_nll_and_z(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    chunk_logits: int = CHUNK_LOGITS,
    impossible: Sequence[int] = (),
) -> Tensor:
    """Like `token_nll`, (2, M): beside it the squared logarithm of the softmax's normaliser at each position."""
    return _in_pieces(plain_nll_and_z, h, weight, targets, softcap, chunk_logits, impossible)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap tanh(logits / softcap), or the logits as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def plain_nll(
    h: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, impossible: Sequence[int] = ()
) -> Tensor:
    """The plain twin of `token_nll`, with all logits at once."""
    return F.cross_entropy(_logits(h, weight, softcap, impossible), targets, reduction="none")


def plain_nll_and_z(
    h: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, impossible: Sequence[int] = ()
) -> Tensor:
    """The plain twin of `token_nll_and_z`, with all logits at once."""
    logits = _logits(h, weight, softcap, impossible)
    nll = F.cross_entropy(logits, targets, reduction="none")
    return torch.stack([nll, torch.logsumexp(logits, dim=-1).square()])


def _logits(h: Tensor, weight: Tensor, softcap: float | None, impossible: Sequence[int]) -> Tensor:
    logits = F.linear(h, weight)  # (M, V)
    logits = capped(logits if logits.dtype.itemsize >= 4 else logits.float(), softcap)
    for index in impossible:
        logits = logits.index_fill(1, torch.tensor(index, device=logits.device), -torch.inf)
    return logits


def _in_pieces(
    score: Callable[..., Tensor],
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    chunk_logits: int,
    impossible: Sequence[int],
) -> Tensor:
    rows = max(1, chunk_logits // weight.shape[0])
    if rows >= h.shape[0]:
        return score(h, weight, targets, softcap, impossible)
    pieces = zip(h.split(rows), targets.split(rows), strict=True)
    found = [
        checkpoint(score, part, weight, wanted, softcap, impossible, use_reentrant=False) for part, wanted in pieces
    ]
    return torch.cat(found, dim=-1)
