"""The output head's loss: negative log-likelihood of each target without the (B, T, V) tensor at full size.

PyTorch's `linear_cross_entropy` reduces over tokens in its chunked form; objectives weight each token. Where the
weights are known before, as while training, each piece of logits gives its part of the gradients while it is there
(`summed_nll`): none is kept and none computed twice. Elsewhere pieces are recomputed in the backward pass
(`token_nll`). Both are cut in the spirit of arXiv 2411.09009.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from lit_small_lm.context import Context, Summing
from lit_small_lm.kernels import head as kernels
from lit_small_lm.products import linear
from lit_small_lm.transforms import transformed

CHUNK_LOGITS = 1 << 26
"""Logits that `token_nll` holds at once; fewer are scored in one piece."""
SUMMED_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Logits that `summed_nll` holds at once, by the kind of device, ..."""
SUMMED_ROWS = 256
"""... but not fewer than those of so many targets: each piece reads and writes the head's whole gradient. The kernel
takes no more at once, with any number of ids."""
Pieces = Literal["plain", "compiled"]


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
        self.pieces: Pieces = "plain"
        """Whether what is done with each piece of logits is compiled on a GPU, and done by the kernel on a CPU."""

    def forward(self, h: Tensor, weight: Tensor, targets: Tensor, ctx: Context) -> Tensor:
        wanted, how, summing = targets.flatten(), {"softcap": self.softcap, "impossible": ctx.impossible}, ctx.summing
        if self.training and self.z_loss:
            nll, squares = token_nll_and_z(h, weight, wanted, **how).unflatten(1, targets.shape)
            ctx.trace.token_losses["z_loss"] = self.z_loss * squares
        elif summing is None:
            nll = token_nll(h, weight, wanted, **how).view(targets.shape)
        else:
            weights = None if summing.weights is None else summing.weights.flatten()
            ctx.trace.nats, nll = summed_nll(h, weight, wanted, weights, pieces=self.pieces, **how)
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
    pieces: Pieces = "plain",
) -> tuple[Tensor, Tensor]:
    """h (M, D), weight (V, D), targets (M,), weights (M,) or None for all one -> the sum () of the nats of all targets,
    each times its weight, and the nats (M,) by themselves, through which no gradient flows.

    At most `chunk_logits` logits are held at once; None: as many as pay on the device. It is one operator of our own,
    so that a compiled network has one form of it for any number of targets.

    Raises:
        RuntimeError: in the backward pass, that its gradients cannot be differentiated again.
    """
    if not torch.is_grad_enabled() or transformed():
        nll = token_nll(h, weight, targets, softcap, chunk_logits or CHUNK_LOGITS, impossible)
        return (nll if weights is None else nll * weights).sum(), nll
    kind = h.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else h.dtype
    pay = max(SUMMED_ROWS, SUMMED_LOGITS.get(kind, SUMMED_LOGITS["cuda"]) // weight.shape[0])
    rows = pay if chunk_logits is None else max(1, chunk_logits // weight.shape[0])
    return _summed(h, weight, targets, weights, softcap, list(impossible), dtype, rows, pieces)[:2]


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


@torch.library.custom_op("lit_small_lm::summed_nll", mutates_args=())
def _summed(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    softcap: float | None,
    impossible: Sequence[int],
    dtype: torch.dtype,
    rows: int,
    pieces: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, the nats (M,), and the gradients of the sum by h and by weight; computed in `dtype`, so many rows at
    once."""
    if pieces == "compiled" and softcap is None and kernels.takes(h, weight, dtype):
        found = kernels.nll_and_gradients(h, weight, targets, weights, impossible, min(rows, SUMMED_ROWS))
        return Summing(weights).of(found[0]), *found
    score = _compiled() if pieces == "compiled" and h.is_cuda else _nll_and_gradient
    nats, h_grads, total = [], [], None
    with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
        head = weight.to(dtype)
        for part in (slice(start, start + rows) for start in range(0, max(1, len(h)), rows)):
            given, scale = h[part].to(dtype), None if weights is None else weights[part]
            nll, grad = score(linear(given, head), targets[part], scale, softcap, impossible, dtype)
            nats.append(nll)
            h_grads.append(linear(grad, head.t()).to(h.dtype))  # (m, D)
            total = _accumulated(total, grad.t(), given, weight.dtype)  # (V, D)
    nll = torch.cat(nats)
    return Summing(weights).of(nll), nll, torch.cat(h_grads), total


@_summed.register_fake
def _(h, weight, targets, weights, softcap, impossible, dtype, rows, pieces):
    nll = h.new_empty(h.shape[0], dtype=torch.promote_types(dtype, torch.float32))
    total = nll if weights is None else nll.to(torch.promote_types(nll.dtype, weights.dtype))
    return total.new_empty(()), nll, torch.empty_like(h), torch.empty_like(weight)


def _keep(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros of the head's size, for outputs that have no gradient


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("summed_nll: a gradient that is to be differentiated again was asked for; token_nll has one")
    scaled = torch.mul if _needed_again(grad) else Tensor.mul_
    gradients = (scaled(kept, grad.to(kept.dtype)) for kept in ctx.saved_tensors)
    return *gradients, None, None, None, None, None, None, None


def _needed_again(grad: Tensor) -> bool:
    """Whether what is kept for this backward pass may be read after it, or for many gradients at once; if not, its
    memory can be used."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_legacy_batchedtensor(grad):
        return True
    return torch._C._autograd._get_current_graph_task_keep_graph()


_summed.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.lit_small_lm.summed_nll)
def _flops(h, weight, *args, out_shape=None, **kwargs) -> int:
    return 6 * h[0] * h[1] * weight[0]


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    """`_nll_and_gradient` in one kernel or two, for pieces of any length."""
    return torch.compile(_nll_and_gradient)


def _nll_and_gradient(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    softcap: float | None,
    impossible: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The nats (m,) of targets (m,) under logits (m, V), and the gradient (m, V) of their weighted sum in `dtype`."""
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    slope = None
    if softcap is not None:
        bent = torch.tanh(logits / softcap)
        logits, slope = softcap * bent, 1 - bent.square()
    logits = _without(logits, impossible)
    log_probs = torch.log_softmax(logits, dim=-1, out=logits if slope is None else None)  # in the same memory
    wanted = targets.unsqueeze(1)
    nll = -log_probs.gather(1, wanted)  # (m, 1)
    grad = log_probs.exp_()
    grad.scatter_add_(1, wanted, torch.full_like(nll, -1.0))
    if slope is not None:
        grad *= slope
    if weights is not None:
        grad *= weights.unsqueeze(1).to(grad.dtype)
    return nll.squeeze(1), grad.to(dtype)


def _accumulated(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total (V, D) of this type, None at first, plus left (V, m) @ right (m, D)."""
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left @ right)
