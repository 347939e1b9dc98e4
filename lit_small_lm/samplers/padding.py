"""Prompts of different length in one batch: the shorter ones are padded on the left, and padding sees no text."""

import torch
from torch import Tensor

from lit_small_lm.context import Kind, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Sampler, Specials


def left_padding(prompt: Tensor, specials: Specials) -> Tensor:
    """prompt (B, P) -> padded positions before each text (B,)."""
    if specials.pad is None:
        return prompt.new_zeros(prompt.shape[0])
    return (prompt == specials.pad).long().cumprod(1).sum(1)


def padded_rows(tokens: Tensor, padding: Tensor, kind: Kind = "causal", start: int = 0) -> Visibility:
    """Visibility of the columns from `start` on, tokens (B, T), of rows that begin with `padding` (B,) columns."""
    if not padding.any():
        return Visibility.rows(tokens, kind=kind, start=start)
    column = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand(tokens.shape)  # (B, T)
    padded = column < padding.unsqueeze(1)
    positions = torch.where(padded, column, column - padding.unsqueeze(1))
    return Visibility(positions, torch.where(padded, -1, 0), kind)


def refuse_masks(sampler: Sampler, prompt: Tensor, specials: Specials) -> None:
    """Raise RequestError if there is something to fill within the prompt, for samplers that draw from left to right."""
    if specials.mask is not None and (prompt == specials.mask).any():
        raise RequestError(f"{type(sampler).__name__} draws from left to right; it cannot fill places within a text")
