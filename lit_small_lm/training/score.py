"""Scores: the one weighted loss, and the torchmetrics that average it over documents, batches and processes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_small_lm.plugin import Query


def weighted_sum(nll: Tensor, query: Query) -> Tensor:
    """The sum of a query's nats, each times its weight."""
    return nll.sum() if query.weights is None else (nll * query.weights).sum()


class DocumentNLL(Metric):
    """Negative log-likelihood of a split by document, summed over processes.

    Documents are the unit of sampling: the standard errors are those of a ratio of sums over documents.
    """

    full_state_update = False

    def __init__(self, documents: int) -> None:
        super().__init__()
        for name in ("nats", "tokens", "bytes"):
            self.add_state(name, torch.zeros(documents, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, doc_ids: Tensor, counted: Tensor, byte_lengths: Tensor) -> None:
        """Add scored positions.

        Args:
            nll: (B, T) nats of each target.
            doc_ids: (B, T) document of each position.
            counted: (B, T) booleans, the positions that count.
            byte_lengths: (B, T) UTF-8 bytes that each target stands for.
        """
        docs = doc_ids[counted]
        for state, value in ((self.nats, nll), (self.tokens, torch.ones_like(nll)), (self.bytes, byte_lengths)):
            state.index_add_(0, docs, value[counted].to(state.dtype))

    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats per token and `bits_per_byte` with standard errors, and what they were measured on."""
        loss, loss_error = ratio(self.nats, self.tokens)
        rate, rate_error = ratio(self.nats / math.log(2), self.bytes)
        return {
            "loss": loss,
            "loss_standard_error": loss_error,
            "bits_per_byte": rate,
            "bits_per_byte_standard_error": rate_error,
            "documents": (self.tokens > 0).sum(),
            "tokens": self.tokens.sum(),
            "bytes": self.bytes.sum(),
        }


def ratio(top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """sum(top) / sum(bottom) and its standard error over documents (linearised; NaN for fewer than two documents)."""
    used = bottom > 0
    top, bottom, count = top[used], bottom[used], used.sum()
    value = top.sum() / bottom.sum()
    variance = (top - value * bottom).square().sum() * count / (count - 1).clamp(min=1)
    error = variance.sqrt() / bottom.sum()
    return value, error.where(count > 1, torch.nan)


class StepSums:
    """Sums over the accumulated batches of one optimizer step, kept on the device."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start a step."""
        self.nats: Tensor | None = None
        self.count: Tensor | None = None
        self.positions = 0
        self.tokens = 0
        self.uneven = False

    def add(self, nats: Tensor, query: Query, tokens: int) -> None:
        """Add one batch: its weighted nats, what they count for, and how many training tokens the batch has."""
        positions, nats = query.tokens.numel(), nats.detach().double()
        count = nats.new_tensor(float(positions)) if query.count is None else query.count.sum().double()
        self.nats = nats if self.nats is None else self.nats + nats
        self.count = count if self.count is None else self.count + count
        self.positions += positions
        self.tokens += tokens
        self.uneven |= query.count is not None

    def gradient_scale(self, reduce: Callable[..., Tensor]) -> Tensor:
        """What turns the gradient of the mean over positions into that of the mean over tokens, over all processes."""
        totals = reduce(torch.stack([self.count, self.count.new_tensor(float(self.positions))]), reduce_op="sum")
        return (totals[1] / totals[0].clamp(min=1)).float()
