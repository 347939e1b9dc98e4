"""Self-speculation (TiDAR, arXiv 2511.08923): one network drafts by diffusion and verifies autoregressively.

A draft of the places behind the text is accepted token by token with probability min(1, p / q), p autoregressive and q
the draft's; the first one refused is drawn anew from what p has over q (arXiv 2302.01318). Whatever the draft, the text
then follows p.
The trick: the pass that drafts also takes the last token into the memory, and so gives p of the first place for free.
Each of the two passes of a round yields a token at least, so never more of them are made than tokens drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_small_lm.context import Context, Kind, Visibility
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import generator
from lit_small_lm.plugin import Decoding, Frame, Net, Sampler, Specials, setting
from lit_small_lm.samplers.logits import draw, probabilities
from lit_small_lm.samplers.memory import FORGOTTEN, RevisedCache
from lit_small_lm.samplers.padding import left_padding, refuse_masks


@dataclass(frozen=True, kw_only=True)
class SelfSpeculation(Sampler):
    """Drafts the rest of a block by diffusion and keeps what autoregressive sampling would have drawn, in law."""

    kinds: ClassVar[tuple[Kind, ...]] = ("causal", "block")
    needs: ClassVar[Literal["one", "all"]] = "all"

    temperature: float = setting(1.0, low=0)
    """0 takes the likeliest token; 1 samples from the network's own autoregressive distribution."""
    top_k: int | None = setting(None, low=1, unit="tokens")
    """Only the k likeliest tokens may be drawn; null: all."""
    top_p: float = setting(1.0, above=0, high=1, unit="probability")
    """Only the likeliest tokens that together hold this mass may be drawn."""
    drafted: int | None = setting(None, low=1, unit="positions")
    """Places drafted at once, the first of which needs no draft; null: to the end of the network's block."""

    @torch.no_grad()
    def frames(
        self, net: Net, prompt: Tensor, n: int, key: int, specials: Specials, decoding: Decoding = Decoding()
    ) -> Iterator[Frame]:
        """A frame for each evaluation. Draws depend on `key`, the row's index and the position alone.

        Raises:
            RequestError: the prompt has masks to be filled, or there is no mask to draft with.
        """
        refuse_masks(self, prompt, specials)
        if specials.mask is None:
            raise RequestError("sampler: a draft stands on masks, and the tokenizer has no mask token")
        rows = _Rows(self, net, prompt, n, key, specials, decoding)
        while rows.left().any():
            draft = rows.draft()
            yield rows.frame()
            if rows.left().any():
                rows.verify(draft)
                yield rows.frame()


class _Draft(NamedTuple):
    """Places behind each text: the first is certain, the others are drafted."""

    count: Tensor
    """(B,) of them in each row; 0 where the text has ended."""
    tokens: Tensor
    """(B, K)"""
    probs: Tensor
    """(B, K, V) what the drafted ones were drawn from."""


class _Rows:
    """The texts of a batch; all but the last token of each is in the memory."""

    def __init__(
        self, spec: SelfSpeculation, net: Net, prompt: Tensor, n: int, key: int, specials: Specials, decoding: Decoding
    ) -> None:
        self.spec, self.net, self.specials, self.decoding = spec, net, specials, decoding
        self.given, self.nfe, self.cache = prompt.shape[1], 0, RevisedCache()
        self.padding = left_padding(prompt, specials)  # (B,)
        self.tokens = F.pad(prompt, (0, n), value=specials.mask)  # (B, P+n)
        self.filled = prompt.new_full((len(prompt),), self.given)  # (B,) columns that hold text
        self.fresh = prompt  # (B, T) what the memory does not hold yet
        names = ("sample", "draft", "accept")
        self.uniform = {name: _uniform(key, name, prompt, n) for name in names}  # (B, n) each

    def left(self) -> Tensor:
        """(B,) places that are still to fill."""
        return self.tokens.shape[1] - self.filled

    def frame(self) -> Frame:
        """The texts so far."""
        column = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return Frame(self.tokens.clone(), self.nfe, column < self.filled.unsqueeze(1))

    def draft(self) -> _Draft:
        """Draw the next token of each row, and draft those behind it."""
        count, size = self.left(), self.decoding.block_size
        if size is not None:
            count = torch.minimum(count, size - (self.filled - self.padding) % size)
        if self.spec.drafted is not None:
            count = count.clamp(max=self.spec.drafted)
        masks = self.fresh.new_full((len(count), int(count.max())), self.specials.mask)
        logits = self._ask(torch.cat([self.fresh, masks], dim=1), count, self.fresh.shape[1])
        probs = self._probabilities(logits)
        tokens = torch.stack(
            [draw(probs[:, j], self._uniform("draft" if j else "sample", j)) for j in range(masks.shape[1])], dim=1
        )
        self._write(tokens[:, :1], count.clamp(max=1))
        return _Draft(count, tokens, probs)

    def _ask(self, tokens: Tensor, count: Tensor, known: int) -> Tensor:
        """Logits (B, K, V) of the first place behind the known columns, by next token, and of the drafted ones."""
        column = torch.arange(tokens.shape[1], device=tokens.device)
        positions = self.filled.unsqueeze(1) - self.padding.unsqueeze(1) + column - known  # (B, T)
        hidden = (positions < 0) | (column - known >= count.unsqueeze(1))
        positions = torch.where(positions < 0, column, positions.clamp(max=self.tokens.shape[1] - 1))
        docs = torch.where(hidden, FORGOTTEN, 0)
        seen = Visibility(positions, docs, "block", self.decoding.block_size, finished=known)
        back = 1 if self.decoding.logits_at == "before" else 0
        places = known + torch.arange(tokens.shape[1] - known, device=tokens.device) - back
        places[0] = known - 1
        logits = self._run(tokens, seen, places)
        self.cache.settle(known)
        return logits

    @torch.inference_mode()
    def _run(self, tokens: Tensor, seen: Visibility, places: Tensor) -> Tensor:
        """Logits (B, K, V) at these columns (K,) of tokens (B, T)."""
        self.nfe += 1
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * tokens.shape[1]
        logits = self.net(tokens, Context(seen, self.cache), scored=(rows + places).flatten())
        return logits.unflatten(0, (len(tokens), len(places)))

    def verify(self, draft: _Draft) -> None:
        """Keep of a draft what follows the autoregressive distribution, and draw the token behind it."""
        count = torch.where(self.left() > 0, draft.count, 0)
        probs = self._verdict(draft.tokens, count)
        accepted = self._accepted(draft, probs, count)  # (B,)
        self.cache.settle(probs.shape[1], torch.where(count > 0, accepted + 1, 0))
        after = _behind(probs, draft.probs, accepted, count)
        self._write(draft.tokens[:, 1:], accepted)
        self._write(draw(after, self._uniform("sample", 0)).unsqueeze(1), torch.where(count > 0, 1, 0))
        self.fresh = self.tokens.gather(1, (self.filled - 1).unsqueeze(1))

    def _verdict(self, tokens: Tensor, count: Tensor) -> Tensor:
        """Probabilities (B, K, V) of the place behind each of the first `count` (B,) tokens (B, K), by next token."""
        column = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (self.filled - self.padding - 1).unsqueeze(1) + column
        docs = torch.where(column < count.unsqueeze(1), 0, FORGOTTEN)
        seen = Visibility(positions.clamp(max=self.tokens.shape[1] - 1), docs, "causal")
        return self._probabilities(self._run(tokens, seen, column))

    def _accepted(self, draft: _Draft, probs: Tensor, count: Tensor) -> Tensor:
        """(B,) how many drafted tokens of each row are kept, up to the first that is refused."""
        tokens = draft.tokens[:, 1:].unsqueeze(-1)  # (B, K-1, 1)
        wanted, given = (p.gather(-1, tokens).squeeze(-1) for p in (probs[:, :-1], draft.probs[:, 1:]))
        places = range(tokens.shape[1])
        uniform = torch.stack([self._uniform("accept", j) for j in places], 1) if places else given
        inside = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) < count.unsqueeze(1)
        return ((uniform * given < wanted) & inside).long().cumprod(1).sum(1)

    def _write(self, tokens: Tensor, count: Tensor) -> None:
        """Append the first `count` (B,) of tokens (B, K) to each row; a row that has ended is filled with the end."""
        if not tokens.shape[1]:
            return
        column = torch.arange(self.tokens.shape[1], device=tokens.device) - self.filled.unsqueeze(1)  # (B, P+n)
        written = (column >= 0) & (column < count.unsqueeze(1))
        self.tokens = torch.where(written, tokens.gather(1, column.clamp(0, tokens.shape[1] - 1)), self.tokens)
        self.filled = (self.filled + count).clamp(max=self.tokens.shape[1])
        ended = (written & (self.tokens == self.specials.end)).cumsum(1) > 0
        self.tokens = torch.where(ended, self.specials.end, self.tokens)
        self.filled = torch.where(ended.any(1), self.tokens.shape[1], self.filled)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """logits (B, K, V) -> probabilities of the same shape."""
        spec, never = self.spec, self.specials.never_drawn()
        return probabilities(logits.flatten(0, 1), spec.temperature, spec.top_k, spec.top_p, never).view(logits.shape)

    def _uniform(self, name: str, ahead: int) -> Tensor:
        """(B,) draws for the place so far behind each text."""
        index = (self.filled - self.given + ahead).clamp(max=self.uniform[name].shape[1] - 1)
        return self.uniform[name].gather(1, index.unsqueeze(1)).squeeze(1)


def _behind(probs: Tensor, drafted: Tensor, accepted: Tensor, count: Tensor) -> Tensor:
    """What the token behind the accepted ones is drawn from (B, V): what p has over the draft where one was refused,
    p itself behind a whole draft."""
    row, last = torch.arange(len(count), device=count.device), probs.shape[1] - 1
    after = probs[row, accepted]
    rest = (after - drafted[row, (accepted + 1).clamp(max=last)]).clamp(min=0)
    refused = (accepted + 1 < count) & (rest.sum(-1) > 0)
    return torch.where(refused.unsqueeze(1), rest, after)


def _uniform(key: int, name: str, prompt: Tensor, n: int) -> Tensor:
    rows = [torch.rand(n, dtype=torch.float64, generator=generator(key, name, row)) for row in range(len(prompt))]
    return torch.stack(rows).to(prompt.device)
