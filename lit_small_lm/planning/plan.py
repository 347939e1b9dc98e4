"""The plan of a run: what it holds, computes, takes and writes, put together from the other modules of this room.

Everything is a plain value, so that a table and a JSON object are two ways to print one thing.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_small_lm.errors import RequestError, first_line, place_of
from lit_small_lm.planning import evidence, forecast
from lit_small_lm.planning.counts import Parameters, parameters
from lit_small_lm.planning.devices import (
    ARITHMETIC_OF,
    ASSUMED,
    POWER_SHARE,
    UTILISATION,
    Arithmetic,
    Device,
    bill,
    decode_limit,
    rate,
)
from lit_small_lm.planning.disk import Disk, disk
from lit_small_lm.planning.flops import Flops, flops
from lit_small_lm.planning.forecast import LossForecast, OptimumForecast, TokensForecast
from lit_small_lm.planning.inference import CacheMemory, WeightMemory, cache, canvas, weights
from lit_small_lm.planning.memory import TrainingMemory, training
from lit_small_lm.planning.outline import Outline
from lit_small_lm.planning.rehearsal import HELD_IN
from lit_small_lm.planning.statement import Statement
from lit_small_lm.planning.suggestions import Suggestion, step_law
from lit_small_lm.planning.workload import Workload

GIBI = 2**30
METHODS: Mapping[str, Statement] = {
    "parameters": Statement("counted on the network itself, built without storage"),
    "training": Statement(
        "a training step of the network itself, with its precision and optimizer, rehearsed without storage: what is "
        "alive at the fullest moment, without the process and its libraries",
        doubt="on a GPU the kernels' workspace and what the allocator holds free come on top; on a CPU the latter is a "
        "measured share, and a mixture of experts in bfloat16 was seen to grow beyond it, step after step",
    ),
    "inference": Statement(
        "quantised are the matrices of the layers but for routers, with a 16-bit scale a row or group; embedding, "
        "head, norms and convolutions stay in 16 bits",
        doubt="codes alone, as if half a byte a parameter, would say less than a file holds",
    ),
    "cache": Statement(
        "what the network itself puts into its cache, in 16 bits; decoding in float32 takes twice that",
        doubt="layers with a window keep everything here; `within_windows_bytes` is what they need",
    ),
    "flops": Statement(
        "two for every weight that is multiplied and for every product of attention, as the network calls its kernel; "
        "training is three times forward",
        "Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B",
        "by that convention causality is not discounted and recomputation not credited",
    ),
    "disk": Statement("ids in two bytes up to 65,536 of them, else four; checkpoints hold weights and optimizer state"),
}
"""What each part of a plan is, and what it leaves out."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is planned."""

    outline: Outline
    workload: Workload
    source: str
    """Where it was read from."""
    vocabulary: str
    """Which vocabulary was taken, and why."""
    extras: Mapping[str, int] = field(default_factory=dict)
    """Parameters that a public model has beside the network, by name."""
    head_is_known: bool = True
    """Whether it was said if the head shares the embedding's weights."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What it is run on."""

    device: Device | None = None
    """None: time and energy are not said."""
    utilisation: float = UTILISATION
    power_share: float = POWER_SHARE
    price: float | None = None
    """Of one device for one hour."""
    unique_tokens: int | None = None
    """Different tokens at hand; None: as many as are seen."""


@dataclass(frozen=True)
class ModelFacts:
    """The network in numbers."""

    source: str
    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    vocab_size: int
    vocabulary: str
    """Where the vocabulary's size comes from."""
    head: str
    """tied or untied."""
    total_if_tied: int | None
    """Parameters if the head shared the embedding's weights; None where it is known whether it does."""
    total_if_untied: int | None


@dataclass(frozen=True)
class Memory:
    """Of training on each process, and of inference by the format of the weights."""

    training: TrainingMemory | None
    """None where a part cannot be rehearsed; a note says why."""
    inference: Mapping[str, WeightMemory]


@dataclass(frozen=True)
class Tokens:
    """How much text a run sees."""

    per_step: int
    steps: int | None
    run: int | None
    """Repetitions counted; None: it depends on the data."""
    per_parameter: float | None
    """By the active parameters of a mixture of experts."""


@dataclass(frozen=True)
class Laws:
    """What published fits say."""

    loss: LossForecast | None
    """Of the run; None where its tokens are not known."""
    tokens_wanted: TokensForecast
    """At which the network would be the best use of its compute."""
    best_for_compute: OptimumForecast | None
    """The best parameters and tokens for the compute of the run."""
    suggestion: Suggestion | None


@dataclass(frozen=True)
class Time:
    """How long a run takes."""

    device: str
    devices: int
    utilisation: float
    """Share of the dense peak that is assumed."""
    arithmetic: Arithmetic
    peak_flops_per_second: float
    """Dense, of one device."""
    tokens_per_second: float
    seconds: float | None
    """None where the run's tokens are not known."""
    cost: float | None
    decoding_tokens_per_second_at_most: float | None
    """Of one text in bfloat16, by the device's memory bandwidth."""
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Energy:
    """What a run draws."""

    kwh: float | None
    """Of the boards alone; None where power or run are not known."""
    power_share: float


@dataclass(frozen=True)
class Plan:
    """Everything that is said of a run."""

    model: ModelFacts
    parameters: Parameters
    memory: Memory
    cache: CacheMemory | None
    """None for networks that look both ways: they fill in a text of full length and keep nothing of it."""
    canvas_bytes: int | None
    """What those need beside their weights for a pass over one text, in 16-bit numbers; None for the others."""
    flops: Flops
    flops_of_run: int | None
    tokens: Tokens
    laws: Laws
    time: Time | None
    energy: Energy | None
    disk: Disk | None
    evidence: tuple[Statement, ...]
    methods: Mapping[str, Statement]
    notes: tuple[str, ...]


def plan(subject: Planned, conditions: Conditions) -> Plan:
    """Plan a run.

    Raises:
        RequestError: parts that do not go together, or a device without the arithmetic that is asked for.
    """
    outline, workload = subject.outline, subject.workload
    counted = parameters(outline, subject.extras)
    operations = flops(outline, counted, workload.seq_len, workload.objective)
    held, notes = _training(subject)
    of_run = None if workload.tokens is None else workload.tokens * operations.training_per_token
    both_ways = workload.objective.kind == "bidirectional"
    kept = None if both_ways else cache(outline, workload.seq_len)
    formats = weights(outline, counted)
    time, energy = _time(subject, conditions, operations, of_run, 2 * counted.active_matmul, kept)
    laws = _laws(counted, workload, of_run, conditions.unique_tokens)
    per_parameter = None if workload.tokens is None else workload.tokens / counted.active
    parts = workload.shards
    return Plan(
        model=_facts(subject, counted),
        parameters=counted,
        memory=Memory(held, formats),
        cache=kept,
        canvas_bytes=canvas(outline, workload.seq_len) if both_ways else None,
        flops=operations,
        flops_of_run=of_run,
        tokens=Tokens(workload.batch_size * workload.seq_len, workload.steps, workload.tokens, per_parameter),
        laws=laws,
        time=time,
        energy=energy,
        disk=held and disk(workload, outline.vocab_size, parts * held.weights_bytes, parts * held.optimizer_bytes),
        evidence=evidence.of(outline.dims),
        methods=METHODS,
        notes=(*subject.notes, *notes, *_notes(subject, held, laws.loss, conditions.device)),
    )


def _facts(subject: Planned, counted: Parameters) -> ModelFacts:
    outline = subject.outline
    dims, head = outline.dims, outline.spec.head
    other = counted.total + (outline.vocab_size * dims.dim if head == "tied" else -outline.vocab_size * dims.dim)
    tied, untied = (counted.total, other) if head == "tied" else (other, counted.total)
    return ModelFacts(
        source=subject.source,
        **dataclasses.asdict(dims),
        vocab_size=outline.vocab_size,
        vocabulary=subject.vocabulary,
        head=head,
        total_if_tied=None if subject.head_is_known else tied,
        total_if_untied=None if subject.head_is_known else untied,
    )


def _training(subject: Planned) -> tuple[TrainingMemory | None, list[str]]:
    try:
        return training(subject.outline, subject.workload), []
    except RequestError:
        raise
    except Exception as error:  # what code that was never run without values raises is anything
        return None, [f"training memory is not known: {type(error).__name__} in {place_of(error)}: {first_line(error)}"]


def _laws(counted: Parameters, workload: Workload, of_run: int | None, unique: int | None) -> Laws:
    size, total, bound = counted.active_size, counted.size, workload.objective.bound
    wanted = forecast.tokens_for(size, bound, total=total)
    if workload.tokens is None or of_run is None:
        return Laws(None, wanted, None, None)
    return Laws(
        forecast.loss(size, workload.tokens, bound, unique=unique, total=total),
        wanted,
        forecast.optimum(of_run, bound, unique=unique),
        step_law(size, workload.tokens, bound),
    )


def _time(
    subject: Planned,
    conditions: Conditions,
    operations: Flops,
    of_run: int | None,
    weight_bytes: int,
    kept: CacheMemory | None,
) -> tuple[Time | None, Energy | None]:
    device, workload = conditions.device, subject.workload
    if device is None:
        return None, None
    arithmetic = ARITHMETIC_OF[workload.precision]
    share, count = conditions.utilisation, workload.processes
    found = None
    if of_run is not None:
        shares = {"utilisation": share, "count": count, "power_share": conditions.power_share}
        found = bill(of_run, device, arithmetic, price=conditions.price, **shares)
    limit = decode_limit(device, weight_bytes, kept.total_bytes) if kept else None
    time = Time(
        device=device.name,
        devices=count,
        utilisation=share,
        arithmetic=arithmetic,
        peak_flops_per_second=device.peak(arithmetic),
        tokens_per_second=rate(device, arithmetic, share, count) / operations.training_per_token,
        seconds=found and found.seconds,
        cost=found and found.cost,
        decoding_tokens_per_second_at_most=limit,
        statements=(Statement("the device's rates", device.source), ASSUMED),
    )
    return time, Energy(found and found.kwh, conditions.power_share)


def _notes(
    subject: Planned, held: TrainingMemory | None, loss: LossForecast | None, device: Device | None
) -> Iterator[str]:
    """What deserves a second look."""
    if held is not None and device is not None and device.memory is not None and held.total_bytes > device.memory:
        found, there = held.total_bytes / GIBI, device.memory / GIBI
        yield f"training takes {found:.1f} GiB on each device; {device.name} has {there:.0f} GiB"
    guess = math.log(subject.outline.vocab_size)
    if loss is not None and loss.band is not None and loss.band.high > guess:
        yield f"the loss predicted reaches beyond {guess:.2f} nats, a blind guess's: the run is too small for the fits"
    if subject.workload.precision in HELD_IN:
        yield f"fit does not train in {subject.workload.precision}; it is planned for only"
    if subject.workload.tensor_parallel > 1:
        yield "tensor parallelism also divides activations; they are planned as if it did not"


def plain(value: Any) -> Any:
    """A plan, or a part of it, as data for JSON; field by field."""
    if dataclasses.is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
