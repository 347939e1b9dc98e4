"""A plan in lines that a person reads: figures by topic, then what speaks for and against them."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from lit_small_lm.planning.forecast import Band
from lit_small_lm.planning.inference import WeightMemory
from lit_small_lm.planning.memory import TrainingMemory
from lit_small_lm.planning.plan import Plan
from lit_small_lm.planning.proposals import Alternative, Proposal
from lit_small_lm.plugin import Dims
from lit_small_lm.training.callbacks.progress import clock

WIDTH = 118
TOPIC = 11
PARTS = {
    "weights_bytes": "weights",
    "gradients_bytes": "gradients",
    "optimizer_bytes": "optimizer state",
    "average_bytes": "moving average",
    "activations_bytes": "activations",
    "head_bytes": "head and loss",
    "copy_bytes": "copy that a checkpoint is written from",
    "exchange_bytes": "exchange between processes",
    "temporary_bytes": "temporaries",
    "allocator_bytes": "held free by the allocator",
}
"""Fields of a TrainingMemory in words."""


def table(plan: Plan) -> list[str]:
    """The plan in lines."""
    topics = {
        "model": _model(plan),
        "parameters": _parameters(plan),
        "training": _training(plan),
        "inference": _inference(plan),
        "compute": _compute(plan),
        "laws": _laws(plan),
        "time": _time(plan),
        "disk": _disk(plan),
        "shape": map(str, plan.evidence),
        "note": plan.notes,
    }
    return [line for topic, texts in topics.items() for line in _topic(topic, texts)]


def proposed(found: Proposal) -> list[str]:
    """A proposal in lines."""
    return [line for topic, texts in _proposal(found).items() for line in _topic(topic, texts)]


def _topic(name: str, texts: Iterable[str]) -> Iterator[str]:
    """Texts beside the topic that they belong to, each wrapped."""
    for text in texts:
        head, name = name, ""
        yield from textwrap.wrap(
            text, WIDTH, initial_indent=f"{head:{TOPIC}} ", subsequent_indent=" " * (TOPIC + 3), break_on_hyphens=False
        )


# ------------------------------------------------------------------------------------------------------------ topics
def _model(plan: Plan) -> Iterator[str]:
    facts = plan.model
    yield facts.source
    yield f"{_shape(facts)}; {facts.head} head"
    yield f"vocabulary {facts.vocab_size:,}: {facts.vocabulary}"
    if facts.total_if_tied is not None:
        yield (
            f"the configuration does not say whether the head is tied: {facts.total_if_tied:,} parameters if it is, "
            f"{facts.total_if_untied:,} if not; --head tied or --head untied settles it"
        )


def _shape(dims: Dims) -> str:
    shared = "" if dims.n_kv_heads == dims.n_heads else f" ({dims.n_kv_heads} for keys and values)"
    heads = f"{dims.n_heads} heads{shared} of {dims.head_dim}"
    return f"{dims.n_layers} layers x {dims.dim} dim, {heads}, hidden {dims.hidden}"


def _parameters(plan: Plan) -> Iterator[str]:
    counted = plan.parameters
    yield f"{counted.total:,} in all; {counted.non_embedding:,} without tables and head"
    yield f"{counted.matmul:,} multiplied as matrices: those of the layers, and the head once"
    if counted.active != counted.total:
        yield f"{counted.active:,} active: what one token goes through; {counted.active_matmul:,} of them as matrices"
    if counted.buffers:
        yield f"{counted.buffers:,} further values in buffers, which are saved but not learned"
    for name, count in counted.components.items():
        yield f"  {name.replace('_', ' '):16} {count:>18,}  {100 * count / counted.total:5.1f} %"


def _training(plan: Plan) -> Iterator[str]:
    found = plan.memory.training
    if found is None:
        return
    yield f"{size(found.total_bytes)} on each process, at its fullest in the {found.fullest}:"
    yield from (f"  {words:26} {size(value)}" for words, value in _held(found))
    yield str(plan.methods["training"])


def _held(found: TrainingMemory) -> Iterator[tuple[str, int]]:
    for name, words in PARTS.items():
        value = vars(found)[name]
        if value:
            yield words, value


def _inference(plan: Plan) -> Iterator[str]:
    for name, held in plan.memory.inference.items():
        yield f"weights in {name}: {_format(held)}"
    yield str(plan.methods["inference"])
    kept = plan.cache
    if kept is None:
        canvas = size(plan.canvas_bytes or 0)
        yield f"no cache: each pass over a text of {plan.flops.positions:,} positions needs {canvas} beside the weights"
        return
    constant = f" + {size(kept.constant_bytes)} whatever the length" if kept.constant_bytes else ""
    yield (
        f"cache: {kept.per_token_bytes:,} bytes a token{constant}; {size(kept.total_bytes)} at {kept.positions:,} "
        "positions"
    )
    if kept.within_windows_bytes < kept.total_bytes:
        yield f"if layers with a window kept no more than that: {size(kept.within_windows_bytes)}"
    yield str(plan.methods["cache"])


def _format(held: WeightMemory) -> str:
    if held.bits_per_quantised_weight is None:
        return size(held.total_bytes)
    return (
        f"{size(held.total_bytes)}: quantised {size(held.quantised_bytes)} at {held.bits_per_quantised_weight:.3g} "
        f"bits a weight, the rest {size(held.unquantised_bytes)} in 16; {held.bits_per_weight:.3g} bits over all"
    )


def _compute(plan: Plan) -> Iterator[str]:
    found = plan.flops
    yield (
        f"{short(found.forward_per_token, 'FLOPs')} a token forward at {found.positions:,} positions, "
        f"{short(found.training_per_token, 'FLOPs')} in training"
    )
    yield (
        f"  of forward: matrices {short(found.matmul_per_token)}, attention {short(found.attention_per_token)}, "
        f"convolutions {short(found.convolution_per_token)}; 6N + 12LHQT (PaLM) says {short(found.palm_per_token)} in "
        "training"
    )
    if found.scored_per_token != 1:
        yield (
            f"  for a token of text the objective reads {found.read_per_token:.3g} positions and scores "
            f"{found.scored_per_token:.2g}, which alone go through the head"
        )
    yield str(plan.methods["flops"])
    tokens = plan.tokens
    if tokens.run is None:
        yield f"{tokens.per_step:,} tokens a step; how many in all depends on the data (--max_tokens says)"
        return
    yield (
        f"{tokens.steps:,} steps of {tokens.per_step:,} tokens: {tokens.run:,} tokens, {tokens.per_parameter:.3g} a "
        f"parameter; {plan.flops_of_run:.3g} FLOPs"
    )


def _laws(plan: Plan) -> Iterator[str]:
    laws = plan.laws
    if laws.loss is not None and laws.loss.band is not None:
        yield (
            f"loss {_band(laws.loss.band)} nats a token after this run ("
            + ", ".join(f"{name} {value:.3f}" for name, value in laws.loss.by_fit.items())
            + "; the band is wider by what such fits missed elsewhere)"
        )
    wanted = laws.tokens_wanted
    if wanted.d is not None:
        yield (
            f"the best use of its compute at {_band(wanted.d)} tokens, {_band(wanted.ratio)} a parameter ("
            + ", ".join(f"{name} {short(value)}" for name, value in wanted.by_fit.items())
            + ")"
        )
    best = laws.best_for_compute
    if best is not None and best.n is not None:
        yield f"the compute of this run is best spent on {_band(best.n)} parameters and {_band(best.d)} tokens"
    if laws.suggestion is not None:
        yield (
            f"a place to start from: learning rate {laws.suggestion.lr:.2g}, "
            f"{short(laws.suggestion.batch_tokens)} tokens a step"
        )
    yield from _statements(laws.loss or wanted, laws.suggestion)


def _statements(*found: object) -> Iterator[str]:
    said: dict[str, None] = {}
    for each in found:
        said |= dict.fromkeys(map(str, [] if each is None else vars(each)["statements"]))
    yield from said


def _time(plan: Plan) -> Iterator[str]:
    time, energy = plan.time, plan.energy
    if time is None:
        yield "not said without a device: --device NAME, or --device cpu to measure this machine"
        return
    count = f"{time.devices} x " if time.devices > 1 else ""
    yield (
        f"{count}{time.device}: {short(time.tokens_per_second, 'tokens/s')} at {time.utilisation:.0%} of "
        f"{time.peak_flops_per_second / 1e12:.4g} dense TFLOP/s in {time.arithmetic}"
    )
    if time.seconds is not None:
        power = "" if energy.kwh is None else f", {energy.kwh:.3g} kWh at {energy.power_share:.0%} of the board power"
        price = "" if time.cost is None else f", {time.cost:,.2f} at the price given"
        yield f"the run: {clock(time.seconds)}{power}{price}"
    limit = time.decoding_tokens_per_second_at_most
    if limit is not None:
        yield f"decoding: at most {short(limit, 'tokens/s')} of one text, by bandwidth"
    yield from map(str, time.statements)


def _disk(plan: Plan) -> Iterator[str]:
    found = plan.disk
    if found is None:
        return
    store = (
        "" if found.store_bytes is None else f"; {size(found.store_bytes)} for the tokens of this run, none repeated"
    )
    yield f"token store: {found.token_bytes} bytes a token{store}"
    kept = "all of them" if found.kept is None else f"up to {found.kept} at once, {size(found.checkpoints_bytes)}"
    yield f"a checkpoint: {size(found.checkpoint_bytes)} (weights, optimizer state); kept: {kept}"


# ---------------------------------------------------------------------------------------------------------- proposals
def _proposal(found: Proposal) -> dict[str, Sequence[str]]:
    topics: dict[str, Sequence[str]] = {"budget": [] if found.flops is None else [f"{found.flops:.3g} training FLOPs"]}
    if found.needed is not None:
        topics["needed"] = [f"{name}: {each} FLOPs" for name, each in found.needed.by_fit.items()]
    if found.optimum is not None:
        topics["optimum"] = [
            f"{name}: {short(point.n)} parameters, {short(point.d)} tokens, {point.ratio:.3g} a parameter"
            for name, point in found.optimum.by_fit.items()
        ]
    for alternative in found.alternatives:
        topics[alternative.style] = list(_alternative(alternative))
    topics["why"] = list(map(str, found.statements))
    if found.alternatives:
        topics["shape"] = list(map(str, found.alternatives[0].evidence))
    return topics


def _alternative(found: Alternative) -> Iterator[str]:
    yield f"{_shape(found.dims)}: {found.size.total:,} parameters, {short(found.tokens)} tokens"
    if found.total is not None and found.total != found.size:
        yield f"{found.total.total:,} parameters in all, of which those are active"
    if found.loss.band is not None:
        yield f"loss {_band(found.loss.band)} nats a token"
    if found.memory is not None:
        yield f"training memory {size(found.memory)}"
    if found.bill is not None:
        power = "" if found.bill.kwh is None else f", {found.bill.kwh:.3g} kWh"
        price = "" if found.bill.cost is None else f", {found.bill.cost:,.2f} at the price given"
        yield f"{clock(found.bill.seconds)}{power}{price}"


# ------------------------------------------------------------------------------------------------------------ figures
def size(count: float) -> str:
    """`12.81 GB (11.93 GiB)`."""
    for unit, power in (("G", 3), ("M", 2), ("k", 1)):
        if count >= 1000**power or power == 1:
            binary = "K" if unit == "k" else unit
            return f"{count / 1000**power:.2f} {unit}B ({count / 1024**power:.2f} {binary}iB)"
    return f"{count} bytes"


def short(count: float, unit: str = "") -> str:
    """`1.23 G`, or `1.23 GFLOPs`: three digits, a prefix, and the unit that it belongs to."""
    for prefix, power in (("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}".rstrip()


def _band(band: Band) -> str:
    if band.high < 1000:
        return f"{band.low:.3g} to {band.high:.3g}"
    return f"{short(band.low)} to {short(band.high)}"
