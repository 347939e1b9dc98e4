"""Left-to-right sampling with a key/value and convolution cache."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_small_lm.context import Cache, Context, Trace
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Decoding, Frame, Net, Sampler, Specials, setting
from lit_small_lm.samplers.logits import finite, pick, refuse_damage
from lit_small_lm.samplers.padding import left_padding, padded_columns, refuse_masks
from lit_small_lm.samplers.stepping import Step, Stepping, at_hand, stepper

ROUNDED = 64
"""Columns that memory is made for are a multiple of this, so that texts of about one length share compiled code."""
PATIENCE = 32
"""Tokens after which a device is asked whether all logits so far were finite."""


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Sampler):
    """Draws one token at a time, each from the distribution the network gives it."""

    temperature: float = setting(1.0, low=0)
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int | None = setting(None, low=1, unit="tokens")
    """Only the k likeliest tokens may be drawn; null: all."""
    top_p: float = setting(1.0, above=0, high=1, unit="probability")
    """Only the likeliest tokens that together hold this mass may be drawn."""
    step: Stepping = "eager"
    """How the network is run for a token: operation by operation, as one CUDA graph, or compiled (on CUDA as a graph of
    what was compiled), for which the second token has to wait. Texts are the same up to rounding."""

    def frames(
        self, net: Net, prompt: Tensor, n: int, key: int, specials: Specials, decoding: Decoding = Decoding()
    ) -> Iterator[Frame]:
        """One frame a token. A row's draws depend on `key` and the row's index alone, not on the other rows.

        A frame's tokens are where the prompt is, and no frame waits for the device.
        Until the last frame the network is neither to be copied nor given hooks (`stepping.at_hand`).

        Raises:
            RequestError: the prompt has masks to be filled, or a graph is asked for away from CUDA.
            RunError: logits were not finite; on a device this is seen some tokens later.
        """
        refuse_masks(self, prompt, specials)
        rows = _Rows(self, net, prompt, n, key, specials)
        given, patience = prompt.shape[1], 1 if prompt.device.type == "cpu" else PATIENCE
        with at_hand(net) if self.step == "eager" else contextlib.nullcontext():
            for count in range(1, n + 1):
                rows.step()
                if count % patience == 0 or count == n:
                    refuse_damage(rows.finite)
                yield Frame(rows.tokens[:, : given + count], count)


class _Rows:
    """The texts of a batch, a column longer after each step. All that a step changes it changes in place, and it asks
    nothing of the device."""

    def __init__(self, spec: Autoregressive, net: Net, prompt: Tensor, n: int, key: int, specials: Specials) -> None:
        self.spec, self.net, self.given = spec, net, prompt.shape[1]
        columns = -(-(self.given + n) // ROUNDED) * ROUNDED
        padding = left_padding(prompt, specials)  # (B,)
        self.padding = padding if padding.any() else None
        self.never = torch.tensor(specials.never_drawn(), dtype=torch.long, device=prompt.device)
        self.tokens = F.pad(prompt, (0, columns - self.given), value=specials.filler)  # (B, C)
        self.uniform = _uniform(key, prompt, n, columns)  # (B, C), what each column is drawn with
        self.finite = torch.ones((), dtype=torch.bool, device=prompt.device)
        """Whether all logits so far were."""
        self.cache = Cache(columns)
        self.column = torch.arange(self.given, device=prompt.device)
        """(T,) the columns that the next step reads."""
        self.behind = self.column[-1:] + 1
        """(1,) the one behind, which it draws; made ahead, as is `last`, so that a token takes fewer operations."""
        self.last = torch.arange(1, len(prompt) + 1, device=prompt.device) * self.given - 1
        """(B,) which of the B * T positions that it reads are the last of their rows."""
        self.following: Step | None = None

    @torch.inference_mode()
    def step(self) -> None:
        """Draw a further column."""
        if self.following is None:
            self._first()
        else:
            self.following()

    def _first(self) -> None:
        self._draw()
        self.column, self.behind = self.behind, self.behind + 1
        self.last = torch.arange(len(self.tokens), device=self.column.device)
        if self.spec.step != "eager":
            self.cache = self.cache.fixed(self.column.device)
        self.following = stepper(self.spec.step, self._one, self.column.device)

    def _one(self) -> None:
        self._draw()
        self.column += 1
        self.behind += 1

    def _draw(self) -> None:
        """Draw the column behind those read."""
        spec = self.spec
        tokens = self.tokens.index_select(1, self.column)  # (B, T)
        seen = padded_columns(self.column.expand(tokens.shape), self.padding)
        ctx = Context(seen, self.cache, Trace())  # said outright, as torch.compile cannot make what a field defaults to
        logits = self.net(tokens, ctx, scored=self.last)  # (B, V)
        self.finite &= finite(logits)
        uniform = self.uniform.index_select(1, self.behind).squeeze(1)
        found = pick(logits, uniform, spec.temperature, spec.top_k, spec.top_p, self.never)
        self.tokens.index_copy_(1, self.behind, found.unsqueeze(1))


def _uniform(key: int, prompt: Tensor, n: int, columns: int) -> Tensor:
    """(B, columns) draws in [0, 1) in float64, those of the n columns behind the prompt a function of key and row."""
    rows = [torch.rand(n, dtype=torch.float64, generator=generator(key, "sample", row)) for row in range(len(prompt))]
    given = prompt.shape[1]
    return F.pad(torch.stack(rows), (given, columns - given - n)).to(prompt.device)
