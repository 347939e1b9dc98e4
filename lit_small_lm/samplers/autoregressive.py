"""Left-to-right sampling with a key/value and convolution cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_small_lm.context import Cache, Context
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Decoding, Frame, Net, Sampler, Specials, setting
from lit_small_lm.samplers.logits import draw, probabilities
from lit_small_lm.samplers.padding import left_padding, padded_rows, refuse_masks


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Sampler):
    """Draws one token at a time, each from the distribution the network gives it."""

    temperature: float = setting(1.0, low=0)
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int | None = setting(None, low=1, unit="tokens")
    """Only the k likeliest tokens may be drawn; null: all."""
    top_p: float = setting(1.0, above=0, high=1, unit="probability")
    """Only the likeliest tokens that together hold this mass may be drawn."""

    @torch.no_grad()
    def frames(
        self, net: Net, prompt: Tensor, n: int, key: int, specials: Specials, decoding: Decoding = Decoding()
    ) -> Iterator[Frame]:
        """One frame a token. A row's draws depend on `key` and the row's index alone, not on the other rows.

        Raises:
            RequestError: the prompt has masks to be filled.
        """
        refuse_masks(self, prompt, specials)
        tokens, cache, padding = prompt, Cache(prompt.shape[1] + n), left_padding(prompt, specials)
        draws = [generator(key, "sample", row) for row in range(prompt.shape[0])]
        new, never = prompt, specials.never_drawn()
        for step in range(n):
            seen = padded_rows(new, padding, start=cache.length)
            logits = net(new, Context(seen, cache))[:, -1]  # (B, V)
            probs = probabilities(logits, self.temperature, self.top_k, self.top_p, never)
            uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in draws])
            new = draw(probs, uniform.to(probs.device)).unsqueeze(1)  # (B, 1)
            tokens = torch.cat([tokens, new], dim=1)
            yield Frame(tokens, step + 1)
