"""Floating-point operations of a network, from the weights it multiplies and the attention it computes.

Two for every weight that is multiplied (a multiplication and an addition), as in PaLM's appendix B (arXiv 2204.02311):
forward 2N + 4LHQT a token, training three times that. The trick: the sizes of attention are not looked up in the
configuration but seen as the network itself calls the kernel, without data, so that any mixer counts itself. By
convention causality is not discounted, recomputation is not credited, and a window of W positions counts min(W, T).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_small_lm.context import Context, Place, Visibility
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.planning.counts import Parameters
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.question import ask, with_tensors
from lit_small_lm.plugin import Objective

ROWS = 64
"""Over which the share of scored positions is taken, where an objective draws it."""
BACKWARD = 2
"""Operations of a backward pass for each one of the forward pass: gradients of the inputs, and of the weights."""


@dataclass(frozen=True)
class Flops:
    """Operations for one token of rows of `positions` tokens; multiplications and additions count one each."""

    positions: int
    matmul_per_token: int
    """Of the matrices of the layers and of the head, of those experts that the token goes through."""
    attention_per_token: int
    """Of scores and of the sums over values."""
    convolution_per_token: int
    forward_per_token: int
    """Of a pass that gives logits at every position."""
    read_per_token: float
    """Positions that the objective lets the network read for a token of text: 1, or 2 where it reads rows twice."""
    scored_per_token: float
    """Positions that the objective scores for it, which alone go through the head."""
    training_per_token: int
    """Forward and backward pass of what the objective asks, without what activation checkpointing computes twice."""
    palm_per_token: int
    """6N + 12LHQT, for comparison: N without tables that are only looked up, no windows, no convolutions."""


def flops(outline: Outline, counted: Parameters, positions: int, objective: Objective = NextToken()) -> Flops:
    """Operations of a network on rows of `positions` tokens, one document a row.

    Args:
        outline: the network.
        counted: its parameters.
        positions: T.
        objective: what it is asked in training.

    Raises:
        RequestError: parts of the family that do not go together.
    """
    text = torch.zeros(1, positions, dtype=torch.long, device="meta")
    plain = Visibility.rows(text, kind="causal" if objective.kind == "causal" else "bidirectional")
    full, windowed = attention(outline, plain)
    query = ask(objective, ROWS, positions, outline.vocab_size)
    asked = with_tensors(query.visibility, lambda tensor: tensor[:1].to("meta"))
    read, scored = query.tokens.numel() / (ROWS * positions), query.targets.numel() / (ROWS * positions)
    head, convolved = 2 * outline.vocab_size * outline.dims.dim, 2 * counted.by_role.get("convolution", 0)
    inside = 2 * counted.active_matmul - head + convolved
    looked_up = counted.by_role.get("positions", 0)
    looked_up += counted.by_role["embedding"] if outline.spec.head == "untied" else 0
    return Flops(
        positions=positions,
        matmul_per_token=2 * counted.active_matmul,
        attention_per_token=windowed,
        convolution_per_token=convolved,
        forward_per_token=inside + windowed + head,
        read_per_token=read,
        scored_per_token=scored,
        training_per_token=round((1 + BACKWARD) * (read * (inside + attention(outline, asked)[1]) + scored * head)),
        palm_per_token=6 * (counted.active - looked_up) + 3 * full,
    )


class _Call(NamedTuple):
    """A call of the attention kernel."""

    per_key: int
    """Operations for one query and one key, over all heads."""
    keys: int
    mask: Tensor | None


def attention(outline: Outline, visibility: Visibility) -> tuple[int, int]:
    """What the attention of all layers computes for each position of a row under this visibility, on the meta device:
    with all keys, and with no more keys a query than its window has."""
    net, full, windowed = outline.sketch, 0, 0
    for group, layer in zip(outline.groups, net.layers, strict=True):
        watched = Watched.of(visibility)
        with torch.no_grad(), _Kernels() as kernels:
            layer(net.open(net.embed(torch.zeros_like(visibility.positions))), Context(watched, attention="dense"))
        for per_key, keys, mask in kernels.calls:
            window = next((window for made, window in watched.masks if made is mask), None)
            full += group.count * per_key * keys
            windowed += group.count * per_key * min(keys, window or keys)
    return full, windowed


@dataclass(frozen=True)
class Watched(Visibility):
    """A Visibility that remembers which window each of its masks was made for."""

    masks: list[tuple[Tensor, int | None]] = dataclasses.field(default_factory=list, compare=False)

    @classmethod
    def of(cls, visibility: Visibility) -> "Watched":
        """The same visibility, watched."""
        return cls(**{field.name: getattr(visibility, field.name) for field in dataclasses.fields(Visibility)})

    def dense(self, keys: Place | None = None, window: int | None = None) -> Tensor:
        mask = super().dense(keys, window)
        self.masks.append((mask, window))
        return mask


class _Kernels(TorchFunctionMode):
    """Sees every call of the attention kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            mask = rest[0] if rest else kwargs.get("attn_mask")
            self.calls.append(_Call(2 * query.shape[1] * (query.shape[3] + value.shape[3]), key.shape[2], mask))
        return func(*args, **kwargs)
