"""From frames to text: what of a text that is being sampled is final, and may be shown while the rest is still drawn.

Samplers fill places in any order. A piece of text is handed out when no later frame can change it or put anything
before it: the longest run of settled tokens from the beginning, up to the document's end, and without the bytes of a
character that is not whole yet.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Encoder, Frame

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character."""


class Asked(NamedTuple):
    """What a sampler is asked to continue or to fill in."""

    row: Tensor
    """(1, P) the document's start, the prompt, and with a suffix the places between them and the suffix."""
    new: int
    """Places behind the row."""
    given: int
    """Tokens of start and prompt."""

    @classmethod
    def of(cls, encoder: Encoder, prompt: str, count: int, suffix: str, limit: int | None) -> "Asked":
        """`count` places behind a prompt, before a suffix if there is one.

        Raises:
            RequestError: together they exceed `limit` positions; or there is a suffix, and no mask.
        """
        ids, behind = [encoder.specials.start, *encoder.encode([prompt])[0]], encoder.encode([suffix])[0]
        if limit is not None and len(ids) + count + len(behind) > limit:
            more = f" + {len(behind)} of the suffix" if behind else ""
            raise RequestError(
                f"--max_new_tokens: {len(ids)} prompt tokens + {count}{more}; the model has {limit} positions"
            )
        if not behind:
            return cls(torch.tensor([ids]), count, len(ids))
        if encoder.specials.mask is None:
            raise RequestError("--suffix: places before it are masks, and the tokenizer has no mask token")
        return cls(torch.tensor([[*ids, *[encoder.specials.mask] * count, *behind]]), 0, len(ids))


class Written(NamedTuple):
    """What of a text is final."""

    text: str
    """What follows the prompt."""
    tokens: int
    """Tokens of it, its end included."""
    ended: bool
    """Whether the document's end is among them."""


def written(frame: Frame, given: int, encoder: Encoder) -> Written:
    """What is final in the first row of a frame, behind its first `given` tokens."""
    tokens, end = frame.tokens[0].tolist(), encoder.specials.end
    if frame.settled is not None:
        tokens = tokens[: int(frame.settled[0].long().cumprod(0).sum())]
    new = tokens[given:]
    ended = end in new
    text = encoder.decode(new[: new.index(end)] if ended else new)
    return Written(text.rstrip(UNFINISHED), new.index(end) + 1 if ended else len(new), ended)


def pieces(frames: Iterable[Frame], given: int, encoder: Encoder) -> Iterator[str]:
    """The text behind the first `given` tokens, as it becomes final; a piece is never empty."""
    done = ""
    for frame in frames:
        found = written(frame, given, encoder)
        if len(found.text) > len(done):
            yield found.text[len(done) :]
            done = found.text
        if found.ended:
            return
