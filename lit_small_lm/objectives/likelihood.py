"""Likelihoods of a short text behind a prompt under a diffusion model: an exact one, and the bound.

The exact one is that of drawing from left to right: token by token, all later ones masked (the chain rule). It takes a
row of the network for each token. Another order of drawing has another likelihood; the bound is the mean over orders.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lit_small_lm.batch import Batch, Query, Specials
from lit_small_lm.context import Context
from lit_small_lm.objectives.block_diffusion import BlockDiffusion
from lit_small_lm.objectives.denoising import Denoising, LogitsAt, mask_of
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.plugin import Net


@torch.no_grad()
def chain_rule(net: Net, objective: Denoising, prompt: Tensor, target: Tensor, specials: Specials) -> Tensor:
    """Nats (L,) of each token of `target` (L,) behind `prompt` (P,), which begins with `specials.start`: exact.

    Of a network that is asked from left to right anyway (a joint one), in one row.

    Raises:
        RequestError: the tokenizer has no mask.
    """
    mask, back = mask_of(specials, type(objective).__name__), 1 if objective.logits_at == "before" else 0
    text, places = torch.cat([prompt, target]), torch.arange(len(target), device=target.device) + len(prompt)
    index = torch.arange(len(text), device=text.device)
    if objective.beside() is None:
        rows = torch.where(index >= places.unsqueeze(1), mask, text)  # (L, P+L)
        scored = torch.arange(len(target), device=target.device) * len(text) + places - back
    else:
        rows, scored = text.unsqueeze(0), places - 1
    return net(rows, Context(objective.view(rows), impossible=(mask,)), target, scored)


@torch.no_grad()
def bounded(
    net: Net, objective: Denoising, prompt: Tensor, target: Tensor, specials: Specials, draws: int = 128, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """An upper bound in nats of `target` (L,) behind `prompt` (P,), estimated by `draws` rows, and its standard error.

    The rows mask evenly spread numbers of tokens, so the error is at most that; of one token the bound is exact.

    Raises:
        RequestError: the tokenizer has no mask.
    """
    text = torch.cat([prompt, target])
    rows, open_ = text.expand(draws, -1), torch.arange(1, len(text), device=text.device) >= len(prompt)
    slots = torch.arange(draws, device=text.device)
    batch = Batch(rows, torch.zeros_like(rows), open_.expand(draws, -1), slots, slots, specials)
    query, columns, texts = objective.measured(batch, (seed, 0))
    nll = net(query.tokens, query.context(), query.targets, query.scored) * query.weights
    found = nll.new_zeros(draws).index_add(0, columns // texts.tokens.shape[1], nll)
    return found.mean(), found.std() / draws**0.5


class StepZero(NamedTuple):
    """A network before its conversion and after it, in nats per token of the same text; all exact."""

    converted: float
    """By blocks of one position, each masked."""
    autoregressive: float
    """By the network before, read from left to right, the mask left out of its softmax."""
    with_mask: float | None
    """The same with the mask among the answers; None: it had none."""
    tokens: int


@torch.no_grad()
def step_zero(net: Net, before: Net, rows: int, batch: Batch, logits_at: LogitsAt) -> StepZero:
    """What a conversion starts from: where logits stand at the position before, both likelihoods are one.

    Args:
        net: the converted network.
        before: the autoregressive one.
        rows: of the embedding that it had.
        batch: text.
        logits_at: of the converted network.

    Raises:
        RequestError: the tokenizer has no mask.
    """
    mask = mask_of(batch.specials, "BlockDiffusion")
    query = BlockDiffusion(block_size=1, logits_at=logits_at).measured(batch, (0, 0)).query
    plain = NextToken().query(batch, (0, 0))
    counted = torch.ones_like(plain.targets) if plain.weights is None else plain.weights
    plain = replace(plain, weights=counted * (batch.doc_ids[:, :-1] >= 0))
    had = mask < rows
    without = _mean(before, replace(plain, impossible=(mask,) if had else ()))
    return StepZero(_mean(net, query), without, _mean(before, plain) if had else None, len(query.targets))


def _mean(net: Net, query: Query) -> float:
    """Nats per token that counts."""
    nll = net(query.tokens, query.context(), query.targets, query.scored).double()
    return ((nll * query.weights).sum() / (query.weights > 0).sum()).item()
