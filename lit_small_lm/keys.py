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
    """Seed every global generator with `fold(*counters)`, for code that draws from one, such as dropout."""
    seed = fold(*counters)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
