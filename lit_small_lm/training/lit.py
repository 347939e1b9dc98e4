"""The LightningModules: they ask the objective's question, score the network's answer and average it.

What defines the model is in the constructor and cannot change on a resume. What may change (optimizer, seed of a
fresh start, compilation) is an attribute, set by the command line or by you before `fit`.
"""

import abc
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lit_small_lm.backbone import Backbone, BackboneSpec, check_fit
from lit_small_lm.checkpoint import at, encoder_of, grown, make_record, record_of, recorded_dims, weights_of
from lit_small_lm.errors import RequestError, shown
from lit_small_lm.keys import fold, seed_all
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.outputs import check_outputs
from lit_small_lm.planning.counts import size
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Batch, Context, Dims, Encoder, Objective, Optim, Query, Shape, Source, Specials, Split
from lit_small_lm.ranks import data_group, data_rank
from lit_small_lm.shapes import FixedShape
from lit_small_lm.sharding import load_whole
from lit_small_lm.spec import check_settings
from lit_small_lm.training.compiled import compile_network
from lit_small_lm.training.gradients import clip_values, drop_gradients, scale_gradients, total_norm
from lit_small_lm.training.idle_hooks import call_idle, pass_over_idle, signed
from lit_small_lm.training.judge import TAKEN, Judge, hold_back
from lit_small_lm.training.optim import AdamW
from lit_small_lm.training.parallel import FSDP2
from lit_small_lm.training.score import METRICS, DocumentNLL, StepSums, counted_share, weighted_sum
from lit_small_lm.training.stepped import move

PLAIN = (str, int, float, bool, NoneType)
"""Types of values that torch never takes for parts of a network."""


class LanguageModule(LightningModule, abc.ABC):
    """A language model in training. Subclass it for another kind of scoring; AutoregressiveLM is the plain case.

    Args:
        backbone: the family.
        shape: depth and widths.
        objective: what the network is asked.

    Raises:
        RequestError: a value out of range, or parts that do not go together.
    """

    @abc.abstractmethod
    def __init__(self, backbone: BackboneSpec, shape: Shape, objective: Objective) -> None:
        super().__init__()
        parts = {"backbone": backbone, "shape": shape, "objective": objective}
        problems = [line for name, part in parts.items() for line in check_settings(part, f"model.{name}")]
        if problems:
            raise RequestError("; ".join(problems))
        backbone.refuse_kind(objective.kind)
        self.backbone, self.shape, self.objective = backbone, shape, objective
        self.dims = self._resolved(vocab_size=1)
        """Widths; those of a shape that depends on the vocabulary are not final before the network is built."""
        check_outputs(check_fit(backbone, self.dims), objective.kind)  # parts that do not fit are found at no cost
        backbone.report_concerns()
        self.net: Backbone | None = None
        self.optim: Optim = AdamW()
        """The optimizer; its base rate is what schedules multiply."""
        self.seed = 0
        """Everything random in training is a function of this and of counters."""
        self.draws = 4
        """Draws of noise that a held-out figure is the mean of, where it is an estimate of a bound."""
        self.compile_mode = "off"
        """"off", "layers", or a mode of torch.compile for the whole network, see `compiled.compile_network`."""
        self.activation_checkpointing: Literal["off", "layers"] = "off"
        """"layers": only the input of every layer is kept for the backward pass, which runs the layer again."""
        self.init_from: Path | None = None
        """A checkpoint to take the weights from, and nothing else."""
        self.origin: dict[str, Any] | None = None
        """The record of the checkpoint the weights come from; the same shape has the widths that it had there."""
        self.config = ""
        """The whole configuration of the run as YAML, kept in checkpoints so that a branch can start from it."""
        self.tokens_seen = 0
        """Training positions so far, over all processes and earlier sessions."""
        self.seconds = 0.0
        """Training time so far, earlier sessions included."""
        self.sums = StepSums()
        self.noted: dict[str, float] = {}
        """What callbacks want logged of each step beside its loss, as train/NAME."""
        self.grad_norm: Tensor | None = None
        """Norm of the last step's gradient, before clipping."""
        self.judge: Judge | None = None
        """Decides whether a step is taken; the guard callback sets it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Plain values in the place of what is no part of the network need none of torch's search among its parts;
        Lightning sets some forty at every step."""
        held = self.__dict__
        if type(value) in PLAIN and name in held:
            held[name] = value
        else:
            super().__setattr__(name, value)

    def monitored(self, source: Source) -> list[str]:
        """Metrics that a callback may watch in a run on `source`: those of each validation."""
        prefixes = ["val", *(f"val/{part.name}" for part in source.components() if part.name)]
        return [f"{prefix}/{name}" for prefix in prefixes for name in self.figures()]

    def figures(self) -> list[str]:
        """The names of what a validation measures."""
        return list(METRICS)

    def refuse_length(self, seq_len: int) -> None:
        """Raise RequestError for rows that are longer than the family has positions."""
        limit = self.backbone.positions.limit()
        if limit is not None and seq_len > limit:
            raise RequestError(f"data.seq_len: {seq_len}; model.backbone.positions has {limit} positions")

    # ------------------------------------------------------------------------------------------------------ building
    @property
    def encoder(self) -> Encoder:
        """The tokenizer, which belongs to the data module."""
        return self.trainer.datamodule.encoder

    def tokenizer_of(self, record: Mapping[str, Any]) -> Encoder:
        """The tokenizer to go on with from a checkpoint's record."""
        return encoder_of(record)

    def configure_model(self) -> None:
        """Build the network once the tokenizer is known."""
        if self.net is not None:
            return
        self.refuse_length(self.trainer.datamodule.seq_len)
        vocab_size = self.encoder.specials.vocab_size
        self.dims = recorded_dims(self.origin, self.shape) or self._resolved(vocab_size)
        self.net = self._build(vocab_size)
        torch.manual_seed(fold(self.seed, "init"))
        self.net.init_weights()
        if self.init_from is not None:
            self._take_weights(self.init_from)
        for layer in self.net.layers:
            layer.activation_checkpointing = self.activation_checkpointing
        compile_network(self.net, self.compile_mode, self.trainer.strategy.root_device.type)

    def _resolved(self, vocab_size: int) -> Dims:
        return self.shape.resolve(lambda dims: size(Outline(self.backbone, dims, vocab_size)))

    def _build(self, vocab_size: int) -> Backbone:
        """The network, each process's share of it where it is sharded; its weights are not those of this seed yet."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDP2):
            return Backbone(self.backbone, self.dims, vocab_size)
        strategy.refuse_model(self.backbone, self.dims)
        with torch.device("meta"):
            net = Backbone(self.backbone, self.dims, vocab_size)
        strategy.shard(net)
        return net

    def _take_weights(self, path: Path) -> None:
        checkpoint = at(path)
        record = record_of(checkpoint)
        if self.tokenizer_of(record).record() != self.encoder.record():
            raise RequestError(f"--init_from {shown(str(path))}: it was trained with another tokenizer")
        try:
            load_whole(self.net, fitted(weights_of(checkpoint), Specials(**record["specials"]), self.encoder.specials))
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise RequestError(
                f"--init_from {shown(str(path))}: {len(lines) - 1} tensors do not fit, first: {lines[1].strip()}"
            ) from None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = self.trainer.precision != "16-mixed"  # a fused kernel unscales by itself, after clipping
        optimizer = self.optim.build(list(self.net.named_roles()), fused)
        held = ("params", "param_names")
        self._settings = [{k: v for k, v in group.items() if k not in held} for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        """Validation waits for the end of a step, and the optimizer's settings are the config's again, where a resume
        has brought old ones with its state."""
        parts, interval = self.trainer.accumulate_grad_batches, self.trainer.val_check_batch
        if isinstance(interval, int):
            self.trainer.val_check_batch = -(-interval // parts) * parts
        for group, settings in zip(self.trainer.optimizers[0].param_groups, self._settings, strict=True):
            group.update(settings)
        self._rank = data_rank(self.trainer).rank
        pass_over_idle(self.trainer)

    def on_train_end(self) -> None:
        call_idle(self.trainer)

    # ------------------------------------------------------------------------------------------------------ training
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Randomness inside the network (dropout) is a function of seed, step, accumulated batch and share of the data;
        processes that share the work of a layer drop the same. What a step adds up begins anew, gradients too."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        if part == 0:
            self.sums.clear()
            for optimizer in self.trainer.optimizers:
                drop_gradients(optimizer)
        seed_all(self.seed, "train", self.global_step, part, self._rank)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: Lightning asks between forward and backward pass, where the gradients of the step before have been
        gone since this one began, so that they take no memory beside the activations."""

    @signed
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.global_step
        query = self.objective.query(batch, (self.seed, step))
        ctx = query.summed(torch.tensor(step))
        self.net(query.tokens, ctx, query.targets, query.scored)
        nats = ctx.trace.nats
        terms = {str(name): weighted_sum(term, query) for name, term in ctx.trace.token_losses.items()}
        tokens = batch.tokens[:, 1:].numel()  # as many in every batch of a step, however wide the query is
        self.sums.add(nats, query, tokens)
        self.sums.note(terms, ctx.trace)
        loss = sum(terms.values(), start=nats) / tokens
        if not ctx.trace.losses:
            return loss
        return loss + sum(ctx.trace.losses.values(), start=nats.new_zeros(())) * counted_share(query, tokens)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, and after it what moves once per step outside the gradient."""
        super().optimizer_step(*args, **kwargs)
        taken = None if self.judge is None else self.judge.verdict == TAKEN
        move(self.net, self.sums.tallies, self.trainer.strategy.reduce, taken)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Where rows stand for different numbers of tokens, make the gradient that of the mean over all of them."""
        if self.sums.uneven:
            scale = self.sums.gradient_scale(self.trainer.strategy.reduce)
            scale_gradients([p.grad for p in self.net.parameters() if p.grad is not None], scale)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as asked and keep the gradient's norm; Lightning's own refuses fused optimizers."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.__dict__["grad_norm"] = norm = total_norm(gradients)  # no part of the network, see `__setattr__`
        if gradient_clip_val and gradient_clip_algorithm == "value":
            clip_values(gradients, gradient_clip_val)
        elif gradient_clip_val:
            scale_gradients(gradients, (gradient_clip_val * (norm + 1e-6).reciprocal()).clamp(max=1))
        if self.judge is not None:
            self._rule(optimizer)

    def _rule(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the coming step out if the judge says so; what it hears is the same on every process."""
        nats, count, norm = self.sums.nats, self.sums.count, self.grad_norm
        if self.trainer.world_size > 1:
            figures = torch.stack([nats, count, norm.double() / self.trainer.world_size])
            nats, count, norm = self.trainer.strategy.reduce(figures, reduce_op="sum")
        scaler = self.trainer.precision_plugin.scaler if self.trainer.precision == "16-mixed" else None
        seeking = scaler is not None and scaler.get_scale() >= 1  # a gradient that overflows has its scale lowered
        hold_back(optimizer, self.judge.rule(nats / count.clamp(min=1), norm, seeking))

    # ---------------------------------------------------------------------------------------------------- evaluation
    def on_validation_epoch_start(self) -> None:
        self._start("validation")

    def on_test_epoch_start(self) -> None:
        self._start("test")

    def _start(self, split: Split) -> None:
        components = self.trainer.datamodule.documents(split)
        several = components if len(components) > 1 else {}
        count = sum(map(len, components.values()))
        self.metric = self.meter(count, data_group(self.trainer), several).to(self.device)
        self.byte_lengths = self.encoder.byte_lengths().to(self.device)

    def meter(self, documents: int, processes: Any, components: Mapping[str, range]) -> DocumentNLL:
        """What adds up the scores of a split; the arguments are those of `DocumentNLL`."""
        return DocumentNLL(documents, processes, components)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        seed_all(self.seed, "validation", batch_idx, data_rank(self.trainer).rank)
        self.evaluate(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        seed_all(self.seed, "test", batch_idx, data_rank(self.trainer).rank)
        self.evaluate(batch, batch_idx)

    @abc.abstractmethod
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of a held-out split into `self.metric`."""

    def context_of(self, query: Query) -> Context:
        """What the network is told while it is scored: within a fit the step it is at, so that what training ramps up
        is seen as far as it has come; outside it no step, which is the network that every ramp ends with."""
        return query.context(torch.tensor(self.global_step) if self.trainer.state.fn == "fit" else None)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, name: str) -> None:
        values = {key: float(value) for key, value in self.metric.compute().items()}
        self.results = values
        self.log_dict({f"{name}/{key}": value for key, value in values.items()}, sync_dist=True)

    # ---------------------------------------------------------------------------------------------------- checkpoint
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = self.trainer.datamodule
        if "loops" in checkpoint:
            count_whole_steps(checkpoint["loops"]["fit_loop"], self.trainer.accumulate_grad_batches)
        checkpoint["lit_small_lm"] = make_record(
            backbone=self.backbone,
            shape=self.shape,
            dims=self.dims,
            objective=self.objective,
            tokenizer=data.tokenizer,
            encoder=data.encoder,
            step=self.global_step,
            accumulate=self.trainer.accumulate_grad_batches,
            tokens=self.tokens_seen,
            seconds=self.seconds,
            config=self.config,
            corpus=data.fingerprint(),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        record = record_of(checkpoint)
        averages = any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks)
        if self.trainer.state.fn == "fit" and not averages:  # go on with the trained weights, without an average
            checkpoint["state_dict"] = checkpoint.get("current_model_state", checkpoint["state_dict"])
        self.tokens_seen, self.seconds = record["tokens"], record["seconds"]
        if record["tokenizer"]["record"] != self.encoder.record():
            raise RequestError(
                "data.tokenizer: not the checkpoint's; set data.encoder_record to that of the checkpoint"
            )
        if record["corpus"] not in (None, self.trainer.datamodule.fingerprint()):
            warnings.warn(
                "data.source: the text, and what of it is held out, is not that of the checkpoint", stacklevel=2
            )
        if self.trainer.state.fn == "fit":
            if record["step"] >= self.trainer.max_steps:
                raise RequestError(
                    f"trainer: the run is finished, at step {record['step']} of {self.trainer.max_steps}"
                )
            accumulate = self.trainer.accumulate_grad_batches
            count_batches_anew(checkpoint["loops"]["fit_loop"], record["accumulate"], accumulate)


class AutoregressiveLM(LanguageModule):
    """Next-token prediction; validation and test give the exact likelihood.

    Args:
        backbone: the family: norm scheme, kinds of layers, positions, init.
        shape: depth and widths.
    """

    def __init__(self, backbone: BackboneSpec = BackboneSpec(), shape: Shape = FixedShape()) -> None:
        super().__init__(backbone, shape, NextToken())

    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        query = self.objective.query(batch, (fold(self.seed, "evaluation"), 0))
        nll = self.net(query.tokens, self.context_of(query), query.targets)
        self.metric.update(nll, batch.doc_ids[:, :-1], counted(query), self.byte_lengths[query.targets])


def fitted(state: dict[str, Tensor], before: Specials, now: Specials) -> dict[str, Tensor]:
    """The weights of a network, with a row for the mask where its tokenizer had none and now has one."""
    if before.mask is not None or now.mask is None:
        return state
    return grown(state, now.vocab_size, before.padding_from, [now.mask])


def counted(query: Query) -> Tensor:
    """(B, T) booleans: the positions of a query that count."""
    return torch.ones_like(query.targets, dtype=torch.bool) if query.weights is None else query.weights > 0


def count_whole_steps(fit_loop: dict[str, Any], accumulate: int) -> None:
    """Take the batches of a step that is not finished out of Lightning's counters; a resume begins it again."""
    for counters in ("current", "total"):
        progress = fit_loop["epoch_loop.batch_progress"][counters]
        begun = progress["ready"] % accumulate
        progress.update({name: count - begun for name, count in progress.items()})


def count_batches_anew(fit_loop: dict[str, Any], before: int, now: int) -> None:
    """Make Lightning's counters of batches those of a run that accumulated `now` batches a step, not `before`."""
    for counters in ("current", "total"):
        progress = fit_loop["epoch_loop.batch_progress"][counters]
        steps = progress["ready"] // before
        for name in ("ready", "started", "processed", "completed"):
            progress[name] += steps * (now - before)
