"""Randomness from counters: every random choice is a function of named numbers, never of a running generator.

A seed folded from (seed, purpose, step, ...) gives the same order, noise and dropout for any number of loader
workers and after any resume, because nothing has to be remembered between two draws.
"""

import hashlib
import random

import numpy as np
import torch


def fold(*counters: int | str) -> int:
    """A 63-bit seed that depends on every counter, in order (BLAKE2b of their text)."""
    text = "/".join(f"{type(c).__name__}:{c}" for c in counters)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*counters: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded with `fold(*counters)`."""
    return torch.Generator(device=device).manual_seed(fold(*counters))


def seed_all(*counters: int | str) -> None:
    """Seed every global generator with `fold(*counters)`, for code that draws from one, such as dropout.

    Devices that nothing has run on are left alone: `torch.manual_seed` would note each of its calls for them, with the
    stack that it came from, which takes a millisecond and is never forgotten.
    """
    seed = fold(*counters)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of SplitMix64, as signed numbers."""
DIGITS = 26
"""Binary digits of a stratified draw that are chosen one by one; the rest is drawn at once."""


def uniform(key: int | torch.Tensor, *counters: torch.Tensor) -> torch.Tensor:
    """Uniform draws in [0, 1) in float64, each a function of `key` and of its counters alone.

    The counters are whole numbers and broadcast; every device gives the same draws (SplitMix64, Steele et al. 2014, as
    a hash of one counter after the other).
    """
    state = torch.as_tensor(key)
    for counter in counters:
        state = _mixed(state.to(counter.device) ^ _mixed(counter + GOLDEN))
    return _shifted(_mixed(state + GOLDEN), 11).double() * 2.0**-53


def stratified(key: int, index: torch.Tensor) -> torch.Tensor:
    """Draws in [0, 1) in float64 that are uniform each by itself, and together evenly spread.

    Of draws with 2^n consecutive indices from a multiple of 2^n, one falls into each of 2^n equal parts, which one at
    random: van der Corput's sequence with the scrambling of Owen (1995).
    """
    digit = torch.arange(DIGITS, device=index.device)
    below = index.unsqueeze(-1) & ((1 << digit) - 1)  # the digits that come before, which decide together on a flip
    flipped = (index.unsqueeze(-1) >> digit & 1) ^ (uniform(key, below, digit) < 0.5)
    rest = uniform(key, index, torch.tensor(DIGITS, device=index.device)) * 2.0**-DIGITS
    return ((flipped * 2.0 ** -(digit + 1.0)).sum(-1, dtype=torch.float64) + rest).clamp(max=1 - 2.0**-53)


def _mixed(state: torch.Tensor) -> torch.Tensor:
    """64 bits -> 64 bits, one to one, where each bit depends on all of them."""
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, count: int) -> torch.Tensor:
    """Bits moved to the right, zeros behind them."""
    return state >> count & ((1 << (64 - count)) - 1)
