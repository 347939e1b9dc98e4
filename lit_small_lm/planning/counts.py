"""Parameter counts: by component, and in the conventions that scaling laws and FLOP formulas go by.

The laws of the literature do not count alike: Kaplan (arXiv 2001.08361) leaves out embeddings, Chinchilla (arXiv
2203.15556) counts everything, and FLOPs follow the weights that are multiplied as matrices, among them a tied head,
once. Of a mixture of experts, `active` counts the experts that one token goes through.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from torch import nn

from lit_small_lm.backbone import Backbone
from lit_small_lm.planning.outline import Outline
from lit_small_lm.plugin import Size
from lit_small_lm.roles import Sparse, parameter_role

TABLES = ("embedding", "positions", "head")
"""Roles of weights outside the layers."""
NO_MATRICES = ("embedding", "positions", "convolution", "norm", "bias")
"""Roles of weights that no matrix product multiplies: they are looked up, added, or slid along the text."""

BY_ROLE = {"norm": "norms", "router": "routers"}
"""Components of weights wherever they stand."""


@dataclass(frozen=True)
class Parameters:
    """How many parameters a network has."""

    total: int
    non_embedding: int
    """Without the tables of tokens and positions and without the output head."""
    matmul: int
    """Weights multiplied as matrices: those of the layers, and the head once, tied or not."""
    active: int
    """Those of `total` that one token goes through: all but the experts it is not sent to."""
    active_matmul: int
    """Those of `matmul` that one token goes through."""
    buffers: int
    """Values that are saved with the weights but not learned; in none of the other counts."""
    components: Mapping[str, int]
    """`total` by component, biases inside theirs; `norms` holds all of the norm scheme."""
    by_role: Mapping[str, int] = field(repr=False)
    """`total` by the role of the weights, see `roles`."""

    @property
    def size(self) -> Size:
        """The two counts that a shape may be chosen by."""
        return Size(self.total, self.non_embedding)

    @property
    def active_size(self) -> Size:
        """The same of what one token goes through."""
        return Size(self.active, self.non_embedding - self.total + self.active)


class Weight(NamedTuple):
    """One parameter of a network, as far as counting goes."""

    component: str
    role: str
    dims: int
    count: int
    share: Fraction
    """The part of the experts that one token goes through; 1 outside experts."""

    @property
    def is_matrix(self) -> bool:
        """Whether a matrix product of a layer multiplies it."""
        return self.dims > 1 and self.role not in (*NO_MATRICES, "head")


def parameters(outline: Outline, extras: Mapping[str, int] | None = None) -> Parameters:
    """Count a network by its outline.

    Args:
        outline: the network.
        extras: parameters that a public model has beside it, by name.

    Raises:
        RequestError: parts of the family that do not go together.
    """
    extras = extras or {}
    weights = _weighed(outline)
    plain = _weighed(outline.without_canon()) if outline.has_canon else weights
    components: Counter[str] = Counter(extras)
    for weight, times in plain:
        components[weight.component] += weight.count * times
    components["canon"] += _sum(weights) - _sum(plain)
    roles: Counter[str] = Counter()
    for weight, times in weights:
        roles[weight.role] += weight.count * times
    total, head = components.total(), outline.vocab_size * outline.dims.dim
    matrices = [(weight, times) for weight, times in weights if weight.is_matrix]
    return Parameters(
        total=total,
        non_embedding=total - sum(roles[role] for role in TABLES),
        matmul=_sum(matrices) + head,
        active=total - _idle(weights),
        active_matmul=_sum(matrices) - _idle(matrices) + head,
        buffers=_buffers(outline),
        components={name: count for name, count in components.items() if count},
        by_role=dict(roles),
    )


def size(outline: Outline) -> Size:
    """The two counts that a shape may be chosen by."""
    roles: Counter[str] = Counter()
    for weight, times in _weighed(outline):
        roles[weight.role] += weight.count * times
    return Size(roles.total(), roles.total() - sum(roles[role] for role in TABLES))


def _weighed(outline: Outline) -> list[tuple[Weight, int]]:
    """Every parameter of the network, and how often there is one like it."""
    net = outline.sketch
    found = [(weight, 1) for weight in _outside(net)]
    for group, layer in zip(outline.groups, net.layers, strict=True):
        found += [(weight, group.count) for weight in _of_layer(layer)]
    return found


def _outside(net: Backbone) -> Iterator[Weight]:
    parts = {"embedding": net.embed, "positions": net.embed_positions, "norms": net.open, "head": net.head}
    for component, module in [*parts.items(), ("norms", net.close)]:
        if module is not None:
            yield from _weights(module, component)


def _of_layer(layer: nn.Module) -> Iterator[Weight]:
    """A layer without Canon; what a mixture holds beside its experts and their router is shared by all tokens."""
    mixes = any(isinstance(module, Sparse) for module in layer.ffn.modules())
    for module in (layer.mixer_path, layer.ffn_path):
        yield from _weights(module, "norms")
    yield from _weights(layer.mixer, "mixers")
    yield from _weights(layer.ffn, "shared_experts" if mixes else "ffns")
    for module in (layer.canon_a, layer.canon_c):
        yield from _weights(module, "canon")


def _weights(module: nn.Module, component: str, share: Fraction = Fraction(1)) -> Iterator[Weight]:
    """The parameters of a module and of everything inside it."""
    if isinstance(module, Sparse):
        component, share = "experts", share * module.share
    for name, tensor in module.named_parameters(recurse=False):
        role = parameter_role(module, name, tensor)
        yield Weight(BY_ROLE.get(role, component), role, tensor.ndim, tensor.numel(), share)
    for child in module.children():
        yield from _weights(child, component, share)


def _sum(weights: list[tuple[Weight, int]]) -> int:
    return sum(weight.count * times for weight, times in weights)


def _idle(weights: list[tuple[Weight, int]]) -> int:
    """Parameters that one token does not go through."""
    return int(sum(weight.count * times * (1 - weight.share) for weight, times in weights))


def _buffers(outline: Outline) -> int:
    net = outline.sketch
    inside = [sum(buffer.numel() for buffer in layer.buffers()) for layer in net.layers]
    outside = sum(buffer.numel() for buffer in net.buffers()) - sum(inside)
    return outside + sum(count * group.count for count, group in zip(inside, outline.groups, strict=True))
