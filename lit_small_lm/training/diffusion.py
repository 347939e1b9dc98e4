"""Diffusion language models in training: their loss is an upper bound, and every figure of it says so.

Validation and test take the mean of several draws of the estimator that scatters least (so many masks of each count,
spread evenly over rows and blocks), the same ones at every validation and whatever the training loss is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.errors import RequestError
from lit_small_lm.keys import fold
from lit_small_lm.objectives.denoising import Denoising, Estimate, mask_of
from lit_small_lm.objectives.masked_diffusion import MaskedDiffusion
from lit_small_lm.plugin import Batch, Encoder, Shape
from lit_small_lm.shapes import FixedShape
from lit_small_lm.training.lit import LanguageModule, counted
from lit_small_lm.training.score import METRICS, DocumentNLL, named


class DiffusionLM(LanguageModule):
    """Restores masked tokens; validation and test give an upper bound of the negative log-likelihood.

    Args:
        backbone: the family: norm scheme, kinds of layers, positions, init.
        shape: depth and widths.
        objective: masked diffusion, block diffusion, or block diffusion joined with next-token prediction.
    """

    objective: Denoising

    def __init__(
        self,
        backbone: BackboneSpec = BackboneSpec(),
        shape: Shape = FixedShape(),
        objective: Denoising = MaskedDiffusion(),
    ) -> None:
        super().__init__(backbone, shape, objective)
        self.held_out = objective
        """The objective whose bound validation and test measure: the one asked for, whatever a callback trains on
        meanwhile, so that figures of all steps are of one kind."""
        self.refuse_decoding(objective)

    def refuse_decoding(self, objective: Denoising) -> None:
        """Raise RequestError if a part cannot honour the visibility that text is drawn under."""
        for kind in objective.decoding().kinds:
            self.backbone.refuse_kind(kind)

    def refuse_length(self, seq_len: int) -> None:
        """Raise RequestError for rows that are longer than the family has positions, or shorter than one block."""
        self.refuse_filled(self.objective, seq_len)
        size = self.objective.decoding().block_size or 1
        if size > seq_len + 1:
            raise RequestError(
                f"model.objective.block_size: {size}; a row of data.seq_len {seq_len} has {seq_len + 1} positions; "
                "allowed: at most that"
            )

    def refuse_filled(self, objective: Denoising, seq_len: int) -> None:
        """Raise RequestError if there are fewer positions than rows of `seq_len` targets may have under `objective`."""
        limit, multiple = self.backbone.positions.limit(), objective.multiple()
        if limit is not None and -(-(seq_len + 1) // multiple) * multiple > limit:
            filled = "" if multiple == 1 else f", filled up to a multiple of {multiple}"
            raise RequestError(
                f"data.seq_len: {seq_len}; model.backbone.positions has {limit} positions, and {type(self).__name__} "
                f"needs one more than a row has targets{filled}"
            )

    def tokenizer_of(self, record: Mapping[str, Any]) -> Encoder:
        """A checkpoint's tokenizer; one without a mask is given one, for which the network gets a row."""
        return super().tokenizer_of(record).with_mask()

    def configure_model(self) -> None:
        mask_of(self.encoder.specials, type(self.objective).__name__)
        super().configure_model()

    def figures(self) -> list[str]:
        own = [named(figure, self.held_out.bound) for figure in METRICS]
        blocks = [] if self.held_out.parts() is None else ["block_size"]
        return [*own, *DRAWN, *blocks, *([] if self.held_out.beside() is None else METRICS)]

    def meter(self, documents: int, processes: Any, components: Mapping[str, range]) -> "DrawnNLL":
        draws = 1 if self.held_out.bound == "exact" else self.draws
        meter = DrawnNLL(documents, processes, components, self.held_out.bound, draws, self.held_out.parts())
        if self.held_out.beside() is not None:
            meter.exact = DocumentNLL(documents, processes, components)
        return meter

    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        key = fold(self.seed, "evaluation")
        estimates = [self.held_out.measured(batch, (key, draw)) for draw in range(self.metric.draws)]
        nats = torch.stack([self.nats_of(estimate) for estimate in estimates])  # (S, B, W)
        texts = estimates[0].texts
        self.metric.update(nats, texts.visibility.doc_ids, texts.counted, self.byte_lengths[texts.tokens])
        if self.metric.exact is not None:
            query, mask = self.held_out.beside().query(batch, (key, 0)), mask_of(batch.specials, "model.objective")
            nll = self.net(query.tokens, self.context_of(replace(query, impossible=(mask,))), query.targets)
            self.metric.exact.update(nll, batch.doc_ids[:, :-1], counted(query), self.byte_lengths[query.targets])

    def nats_of(self, estimate: Estimate) -> Tensor:
        """(B, W) what each token of the texts adds to one estimate of the bound."""
        query, tokens = estimate.query, estimate.texts.tokens
        ctx = self.context_of(query)
        nll = self.net(query.tokens, ctx, query.targets, query.scored) * query.weights  # (M,) float64
        return nll.new_zeros(tokens.numel()).index_add(0, estimate.columns, nll).view(tokens.shape)


DRAWN = ("draws", "loss_draw_error")
"""What `DrawnNLL` measures beside a likelihood."""


class DrawnNLL(DocumentNLL):
    """Estimates of a bound of the negative log-likelihood of a split: the mean over draws of noise, by document.

    `loss_draw_error` is the standard error over draws, of these documents; NaN for one draw. The standard errors over
    documents hold it too.

    Args:
        documents, processes, components: as for `DocumentNLL`.
        bound: what the mean over all draws is, "exact" or "upper"; the figures are named after it.
        draws: S, how many there are.
        block_size: of the diffusion blocks that the bound is about; None: it has none.
    """

    def __init__(
        self,
        documents: int,
        processes: Any,
        components: Mapping[str, range],
        bound: Literal["exact", "upper"],
        draws: int,
        block_size: int | None = None,
    ) -> None:
        super().__init__(documents, processes, components)
        self.bound, self.draws, self.block_size = bound, draws, block_size
        self.exact: DocumentNLL | None = None
        """Of the exact likelihood that the network has beside the bound."""
        self.add_state("by_draw", torch.zeros(draws, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, doc_ids: Tensor, counted: Tensor, byte_lengths: Tensor) -> None:
        """Like `DocumentNLL.update`, with nll (S, B, W)."""
        super().update(nll.mean(0), doc_ids, counted, byte_lengths)
        self.by_draw += (nll.double() * counted).sum((1, 2))

    def compute(self) -> dict[str, Tensor]:
        """As `DocumentNLL.compute` under the names of a bound, the draws, and the exact figures if there are any."""
        found = {self._named(key): value for key, value in super().compute().items()}
        rates = self.by_draw / self.tokens.sum()
        found["draws"] = torch.tensor(self.draws)
        if self.block_size is not None:
            found["block_size"] = torch.tensor(self.block_size)
        found["loss_draw_error"] = rates.std() / self.draws**0.5 if self.draws > 1 else rates.new_tensor(torch.nan)
        return found if self.exact is None else {**found, **self.exact.compute()}

    def _named(self, key: str) -> str:
        *component, figure = key.rsplit("/", 1)
        return "/".join([*component, named(figure, self.bound)])
