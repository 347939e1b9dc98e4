"""The output head's loss: negative log-likelihood of each target without the (B, T, V) tensor at full size.

PyTorch's `linear_cross_entropy` reduces over tokens in its chunked form; objectives weight each token. Where the
weights are known before, as while training, each piece of logits gives its part of the gradients while it is there
(`summed_nll`): none is kept and none computed twice. Elsewhere pieces are recomputed in the backward pass
(`token_nll`). Both are cut in the spirit of arXiv 2411.09009.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_small_lm.context import Context

CHUNK_LOGITS = 1 << 26
"""Logits that `token_nll` holds at once; fewer are scored in one piece."""
SUMMED_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits that `summed_nll` holds at once, by the kind of device."""


class Score(nn.Module):
    """h (M, D), head weight (V, D), M targets -> nats of the targets' shape; what else the context asks for is left in
    its trace.

    Args:
        softcap: c of logits c tanh(logits / c); None: as they are.
        z_loss: weight of the squared logarithm of the softmax's normaliser, recorded as a term of the training loss.
    """

    def __init__(self, softcap: float | None, z_loss: float) -> None:
        super().__init__()
        self.softcap, self.z_loss = softcap, z_loss

    def forward(self, h: Tensor, weight: Tensor, targets: Tensor, ctx: Context) -> Tensor:
        wanted, how, summing = targets.flatten(), {"softcap": self.softcap, "impossible": ctx.impossible}, ctx.summing
        if self.training and self.z_loss:
            nll, squares = token_nll_and_z(h, weight, wanted, **how).unflatten(1, targets.shape)
            ctx.trace.token_losses["z_loss"] = self.z_loss * squares
        elif summing is None:
            nll = token_nll(h, weight, wanted, **how).view(targets.shape)
        else:
            weights = None if summing.weights is None else summing.weights.flatten()
            ctx.trace.nats, nll = summed_nll(h, weight, wanted, weights, **how)
            return nll.view(targets.shape)
        if summing is not None:
            ctx.trace.nats = summing.of(nll)
        return nll


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


def summed_nll(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    softcap: float | None = None,
    chunk_logits: int | None = None,
    impossible: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """h (M, D), weight (V, D), targets (M,), weights (M,) or None for all one -> the sum () of the nats of all targets,
    each times its weight, and the nats (M,) by themselves, through which no gradient flows.

    At most `chunk_logits` logits are held at once; None: as many as pay on the device.
    """
    if not torch.is_grad_enabled():
        nll = token_nll(h, weight, targets, softcap, chunk_logits or CHUNK_LOGITS, impossible)
        return (nll if weights is None else nll * weights).sum(), nll
    chunk = chunk_logits or SUMMED_LOGITS.get(h.device.type, SUMMED_LOGITS["cuda"])
    return _SummedNLL.apply(h, weight, targets, weights, max(1, chunk // weight.shape[0]), softcap, impossible)


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
    return _without(capped(logits if logits.dtype.itemsize >= 4 else logits.float(), softcap), impossible)


def _without(logits: Tensor, impossible: Sequence[int]) -> Tensor:
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


class _SummedNLL(torch.autograd.Function):
    """`summed_nll`, so many rows at once."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        rows: int,
        softcap: float | None,
        impossible: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        kind, nats, h_grads, total = h.device.type, [], [], None
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
        with torch.autocast(kind, enabled=False):
            head = weight.to(dtype)
            for part in (slice(start, start + rows) for start in range(0, max(1, len(h)), rows)):
                given, scale = h[part].to(dtype), None if weights is None else weights[part]
                nll, grad = _nll_and_gradient(F.linear(given, head), targets[part], scale, softcap, impossible)
                nats.append(nll)
                h_grads.append((grad.to(dtype) @ head).to(h.dtype))  # (m, D)
                total = _accumulated(total, grad.to(dtype).t(), given, weight.dtype)  # (V, D)
        ctx.save_for_backward(torch.cat(h_grads), total)
        nll = torch.cat(nats)
        ctx.mark_non_differentiable(nll)
        return (nll if weights is None else nll * weights).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        h_grad, weight_grad = ctx.saved_tensors
        return h_grad * grad.to(h_grad.dtype), weight_grad * grad.to(weight_grad.dtype), None, None, None, None, None


def _nll_and_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor | None, softcap: float | None, impossible: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The nats (m,) of targets (m,) under logits (m, V), and the gradient (m, V) of their weighted sum."""
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    slope = None
    if softcap is not None:
        bent = torch.tanh(logits / softcap)
        logits, slope = softcap * bent, 1 - bent.square()
    log_probs = torch.log_softmax(_without(logits, impossible), dim=-1)
    wanted = targets.unsqueeze(1)
    nll = -log_probs.gather(1, wanted)  # (m, 1)
    grad = log_probs.exp_()
    grad.scatter_add_(1, wanted, torch.full_like(nll, -1.0))
    if slope is not None:
        grad *= slope
    if weights is not None:
        grad *= weights.unsqueeze(1).to(grad.dtype)
    return nll.squeeze(1), grad


def _accumulated(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total (V, D) of this type, None at first, plus left (V, m) @ right (m, D)."""
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left @ right)
