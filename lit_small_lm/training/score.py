"""Scores: the one weighted loss, and the torchmetrics that average it over documents, batches and processes."""

import math
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_small_lm.context import Trace
from lit_small_lm.plugin import Query

METRICS = (
    "loss",
    "loss_standard_error",
    "bits_per_byte",
    "bits_per_byte_standard_error",
    "documents",
    "tokens",
    "bytes",
)
"""What `DocumentNLL` measures."""


BOUNDED = ("loss", "nats_per_token", "bits_per_byte")


def named(figure: str, bound: Literal["exact", "upper"]) -> str:
    """What a figure is called: that of an upper bound of a likelihood says so, as in `val/loss_bound`."""
    quantity, error, _ = figure.partition("_standard_error")
    return f"{quantity}_bound{error}" if bound == "upper" and quantity in BOUNDED else figure


def weighted_sum(nll: Tensor, query: Query) -> Tensor:
    """The sum of a query's nats, each times its weight."""
    return nll.sum() if query.weights is None else (nll * query.weights).sum()


def counted_share(query: Query, tokens: int) -> Tensor | float:
    """What auxiliary losses of a batch are multiplied with: tokens that count over those of its rows, 1 where all do.

    `StepSums.gradient_scale` multiplies with the inverse of the whole step: each batch's auxiliary loss then
    counts as its tokens do, and their weights sum to one.
    """
    return 1.0 if query.count is None else query.count.sum() / tokens


class DocumentNLL(Metric):
    """Negative log-likelihood of a split by document, summed over processes.

    Documents are the unit of sampling: the standard errors are those of a ratio of sums over documents.

    Args:
        documents: how many the split has.
        processes: the process group to sum over, in which every share of the data occurs once; None: all processes.
        components: the documents of each component of a mixture, which are scored by themselves as well.
    """

    full_state_update = False

    def __init__(
        self, documents: int, processes: Any = None, components: Mapping[str, range] = MappingProxyType({})
    ) -> None:
        super().__init__(process_group=processes)
        self.components = dict(components)
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
        """`loss` in nats per token and `bits_per_byte` with standard errors, and what they were measured on.

        Of a mixture also NAME/loss and so on for each of its components.
        """
        found = self._scores(slice(None))
        for name, documents in self.components.items():
            scores = self._scores(slice(documents.start, documents.stop))
            found |= {f"{name}/{key}": value for key, value in scores.items()}
        return found

    def _scores(self, documents: slice) -> dict[str, Tensor]:
        nats, tokens, size = self.nats[documents], self.tokens[documents], self.bytes[documents]
        loss, loss_error = ratio(nats, tokens)
        rate, rate_error = ratio(nats / math.log(2), size)
        return {
            "loss": loss,
            "loss_standard_error": loss_error,
            "bits_per_byte": rate,
            "bits_per_byte_standard_error": rate_error,
            "documents": (tokens > 0).sum(),
            "tokens": tokens.sum(),
            "bytes": size.sum(),
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
        self.tokens = 0
        self.batches = 0
        self.uneven = False
        self.terms: dict[str, Tensor] = {}
        """Weighted sums of the loss terms beside the nats, by name."""
        self.scalars: dict[str, Tensor] = {}
        """Sums over batches of the scalars that the network recorded, by name; the mean over layers of each."""
        self.tallies: dict[Hashable, Tensor] = {}
        """Sums over batches of what `Stepped` modules tallied, by address."""

    def add(self, nats: Tensor, query: Query, tokens: int) -> None:
        """Add one batch: its weighted nats, what they count for, and how many training tokens the batch has."""
        nats = nats.detach().double()
        count = nats.new_full((), tokens) if query.count is None else query.count.sum().double()
        self.nats = nats if self.nats is None else self.nats + nats
        self.count = count if self.count is None else self.count + count
        self.tokens += tokens
        self.uneven |= query.count is not None

    def note(self, terms: Mapping[str, Tensor], trace: Trace) -> None:
        """Add one batch's other loss terms, and what the network recorded to be logged."""
        self.batches += 1
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value.detach().double()
        for name, value in mean_over_layers({**trace.losses, **trace.metrics}).items():
            self.scalars[name] = self.scalars.get(name, 0.0) + value
        for address, tally in trace.tallies.items():
            self.tallies[address] = self.tallies.get(address, 0) + tally

    def gradient_scale(self, reduce: Callable[..., Tensor]) -> Tensor:
        """What turns the gradient of the mean over all tokens into that over those that count, over all processes."""
        totals = reduce(torch.stack([self.count, self.count.new_tensor(float(self.tokens))]), reduce_op="sum")
        return (totals[1] / totals[0].clamp(min=1)).float()


def mean_over_layers(scalars: Mapping[Hashable, Tensor]) -> dict[str, Tensor]:
    """`{("balance", 0): a, ("balance", 1): b}` -> `{"balance": (a + b) / 2}`; a plain name stays as it is."""
    found: dict[str, list[Tensor]] = {}
    for key, value in scalars.items():
        found.setdefault(str(key[0] if isinstance(key, tuple) else key), []).append(value.detach().double())
    return {name: torch.stack(values).mean() for name, values in found.items()}
