"""Prompts of different length in one batch: the shorter ones are padded on the left, and padding sees no text."""

import torch
from torch import Tensor

from lit_small_lm.context import Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Sampler, Specials


def left_padding(prompt: Tensor, specials: Specials) -> Tensor:
    """prompt (B, P) -> padded positions before each text (B,)."""
    if specials.pad is None:
        return prompt.new_zeros(prompt.shape[0])
    return (prompt == specials.pad).long().cumprod(1).sum(1)


def padded_rows(tokens: Tensor, padding: Tensor) -> Visibility:
    """Visibility of whole rows, tokens (B, T), that begin with `padding` (B,) columns of it."""
    return padded_columns(torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape), padding)


def padded_columns(column: Tensor, padding: Tensor | None) -> Visibility:
    """How columns (B, T) of rows are seen that begin with `padding` (B,) columns each; None: no row does."""
    if padding is None:
        return Visibility(column)
    text = column - padding.unsqueeze(1)
    return Visibility(torch.where(text < 0, column, text), torch.where(text < 0, -1, 0))


def refuse_masks(sampler: Sampler, prompt: Tensor, specials: Specials) -> None:
    """Raise RequestError if there is something to fill within the prompt, for samplers that draw from left to right."""
    if specials.mask is not None and (prompt == specials.mask).any():
        raise RequestError(f"{type(sampler).__name__} draws from left to right; it cannot fill places within a text")
