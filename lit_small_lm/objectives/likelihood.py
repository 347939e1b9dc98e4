"""Likelihoods of a short text behind a prompt under a diffusion model: an exact one, and the bound.

The exact one is that of drawing from left to right: token by token, all later ones masked (the chain rule). It takes a
row of the network for each token. Another order of drawing has another likelihood; the bound is the mean over orders.
"""

import torch
from torch import Tensor

from lit_small_lm.batch import Batch, Specials
from lit_small_lm.context import Context
from lit_small_lm.objectives.denoising import Denoising, mask_of
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
