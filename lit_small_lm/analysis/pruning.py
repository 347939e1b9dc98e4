"""A network with fewer layers, which is a model like any other, and which layers are missed least.

The layers that are left keep the places they had (`backbone.Kept`), so that norm factors that depend on them, initial
weights and kinds of layers stay what they were: the pruned network gives, bit for bit, what the whole one gives with
those layers left out.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lit_small_lm.analysis.catalogue import ANALYSES, AnalysisSettings, Cost
from lit_small_lm.analysis.removal import greedily_removed, removed
from lit_small_lm.analysis.states import angular, by_size, profiled
from lit_small_lm.analysis.subject import Subject, Tell
from lit_small_lm.analysis.surgery import running
from lit_small_lm.backbone import Backbone, BackboneSpec, Kept
from lit_small_lm.checkpoint import LanguageModel
from lit_small_lm.errors import RequestError, RunError, not_known, shown
from lit_small_lm.shapes import fixed

POSITIONS = 16
RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parsed(text: str, depth: int) -> list[int]:
    """`3,5-7` -> [3, 5, 6, 7]. Raises RequestError for what is no layer of `depth`, or would leave none."""
    found: set[int] = set()
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        if match is None:
            raise RequestError(f"--layers: {shown(text)!r}; allowed: layers and ranges such as 3,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < depth:
            raise RequestError(f"--layers: {shown(part)}; allowed: within 0 to {depth - 1}, the model's layers")
        found |= set(range(first, last + 1))
    if len(found) == depth:
        raise RequestError(f"--layers: {shown(text)} leaves none of {depth} layers")
    return sorted(found)


def spec_without(spec: BackboneSpec, layers: Sequence[int], depth: int) -> BackboneSpec:
    """The family of a network of `depth` layers without some of them."""
    places = spec.places(depth)
    left = tuple(place for index, place in enumerate(places) if index not in layers)
    return dataclasses.replace(spec, kept=Kept(layers=left, depth=depth if spec.kept is None else spec.kept.depth))


def without_layers(model: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """The model without some of its layers; its record says so, and which they were.

    Raises:
        RunError: the pruned network gives other logits than the whole one with those layers left out.
    """
    net, record = model.net, model.record
    depth = len(net.layers)
    spec, dims = spec_without(net.spec, layers, depth), dataclasses.replace(net.dims, n_layers=depth - len(layers))
    rest = [layer for index, layer in enumerate(net.layers) if index not in layers]
    with running(net, rest):
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.device("meta"):
        pruned = Backbone(spec, dims, model.encoder.specials.vocab_size)
    pruned.load_state_dict(state, assign=True)
    shape = fixed(dims).to_dict()
    gone = [net.spec.places(depth)[index] for index in layers]
    changed = {"backbone": spec.to_dict(), "shape": shape, "shape_asked": shape, "pruned": {"layers": gone}}
    found = dataclasses.replace(model, net=pruned.eval(), record={**record, **changed})
    check_same(model, rest, found)
    return found


@torch.no_grad()
def check_same(model: LanguageModel, layers: Sequence[torch.nn.Module], pruned: LanguageModel) -> None:
    """Raise RunError if a pruned model's logits are not those of the whole one that runs `layers` alone."""
    net = model.net
    size = (2, min(POSITIONS, net.limit() or POSITIONS))
    ids = torch.randint(model.encoder.specials.vocab_size, size, generator=torch.Generator().manual_seed(0))
    ids = ids.to(net.embed.weight.device)
    with running(net, layers):
        wanted = model.logits(ids)
    found = pruned.logits(ids.to(pruned.net.embed.weight.device)).to(wanted.device)
    if not torch.equal(wanted, found) and not torch.allclose(wanted, found, rtol=0, atol=0, equal_nan=True):
        raise RunError(f"prune: the pruned model's logits differ, by up to {(wanted - found).abs().max().item():.3g}")


def _least(values: Sequence[float], count: int) -> list[int]:
    order = sorted(range(len(values)), key=lambda index: (values[index] != values[index], values[index], index))
    return sorted(order[:count])


def by_removal(subject: Subject, kind: str, count: int, tell: Tell) -> list[int]:
    """The layers whose removal, each alone, costs least."""
    return _least(removed(subject, tell)["rise"], count)


def by_greedy(subject: Subject, kind: str, count: int, tell: Tell) -> list[int]:
    """The layers that greedy removal takes first."""
    return sorted(greedily_removed(subject, count, tell)["layers"])


def by_influence(subject: Subject, kind: str, count: int, tell: Tell) -> list[int]:
    """The layers that turn the stream least (ShortGPT, arXiv 2403.03853)."""
    return _least(profiled(subject, kind, tell)["influence"], count)


def by_angular(subject: Subject, kind: str, count: int, tell: Tell) -> list[int]:
    """The layers in a row that turn the stream least together (arXiv 2403.17887)."""
    found = angular(subject, kind, tell)
    distances = by_size(next(iter(found.values()))["distance"])[count - 1]
    start = min(range(len(distances)), key=distances.__getitem__)
    return list(range(start, start + count))


class Metric(NamedTuple):
    """What layers may be chosen by."""

    choose: Callable[[Subject, str, int, Tell], list[int]]
    """Says which `count` layers go."""
    cost: Callable[[int, int], Cost]
    """Of that many layers, and that many to go."""


def _as(name: str) -> Callable[[int, int], Cost]:
    return lambda depth, count: ANALYSES[name].cost(depth, AnalysisSettings(greedy=count))


METRICS = {
    "removal": Metric(by_removal, _as("removal")),
    "greedy": Metric(by_greedy, _as("greedy")),
    "influence": Metric(by_influence, _as("profile")),
    "angular": Metric(by_angular, _as("angular")),
}


def refuse_keep(keep: int, depth: int) -> None:
    """Raise RequestError unless `keep` of `depth` layers can be left."""
    if depth == 1:
        raise RequestError(f"--keep: {keep}; the model has one layer, and none can go")
    if not 1 <= keep < depth:
        raise RequestError(f"--keep: {keep}; allowed: 1 to {depth - 1}, fewer than the model's layers")


def chosen(metric: str, subject: Subject, kind: str, keep: int, tell: Tell) -> list[int]:
    """The layers to remove so that `keep` are left. Raises RequestError for an unknown metric or too many."""
    if metric not in METRICS:
        raise not_known("--by", metric, METRICS, "metric")
    refuse_keep(keep, subject.depth)
    return METRICS[metric].choose(subject, kind, subject.depth - keep, tell)


def content(model: LanguageModel, lightning: str) -> dict[str, Any]:
    """What a checkpoint file of the model holds, without a training state."""
    return {
        "state_dict": {f"net.{name}": tensor.cpu() for name, tensor in model.net.state_dict().items()},
        "lit_small_lm": model.record,
        "epoch": 0,
        "global_step": model.record["step"],
        "pytorch-lightning_version": lightning,
    }
