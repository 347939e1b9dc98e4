"""A network of full widths and few layers, without storage: what is found on it is multiplied to full depth, exactly.

Layers of one kind are equal, so one of each kind is built. That they are equal is looked at, not taken for granted:
where the first, the middle and the last layer of a kind differ (a part that changes with depth), every layer counts for
itself.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from lit_small_lm.backbone import Backbone, BackboneSpec, Layer, LayerSpec, build_layer
from lit_small_lm.plugin import Dims


@dataclass(frozen=True)
class Group:
    """Layers that are equal."""

    members: tuple[int, ...]
    """Their indices, from 0."""

    @property
    def index(self) -> int:
        """The one that stands for them."""
        return self.members[0]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.members)


@dataclass(frozen=True)
class Outline:
    """A network that is never built in full: its family, widths and vocabulary."""

    spec: BackboneSpec
    dims: Dims
    vocab_size: int
    """Rows of the embedding."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of equal layers. Raises RequestError for parts of the family that do not go together."""
        return tuple(group for group, _ in self._found)

    @cached_property
    def sketch(self) -> Backbone:
        """The network with one layer of each group, on the meta device: to be looked at, not to be changed."""
        net = self._shell()
        net.layers = nn.ModuleList(layer for _, layer in self._found)
        return net

    def network(self, indices: Sequence[int]) -> Backbone:
        """The network with these of its layers alone, on the meta device, a new one at every call."""
        kinds, net = self.spec.layers(self.dims.n_layers), self._shell()
        net.layers = nn.ModuleList(self._layer(kinds[index], index) for index in indices)
        return net

    @cached_property
    def _found(self) -> list[tuple[Group, Layer]]:
        """Every group, with the layer that stands for it."""
        kinds: list[tuple[LayerSpec, list[int]]] = []
        for index, kind in enumerate(self.spec.layers(self.dims.n_layers)):
            members = next((members for other, members in kinds if other == kind), None)
            if members is None:
                kinds.append((kind, [index]))
            else:
                members.append(index)
        return [group for kind, members in kinds for group in self._grouped(kind, members)]

    def _grouped(self, kind: LayerSpec, members: Sequence[int]) -> list[tuple[Group, Layer]]:
        looked_at = sorted({members[0], members[len(members) // 2], members[-1]})
        layers = [self._layer(kind, index) for index in looked_at]
        if len(set(map(_form, layers))) == 1:
            return [(Group(tuple(members)), layers[0])]
        return [(Group((index,)), self._layer(kind, index)) for index in members]

    def _layer(self, kind: LayerSpec, index: int) -> Layer:
        with torch.device("meta"):
            return build_layer(self.spec, kind, self.dims, index)

    def _shell(self) -> Backbone:
        """The network without layers worth mentioning."""
        with torch.device("meta"):
            alone = dataclasses.replace(self.spec, kept=None)
            net = Backbone(alone, dataclasses.replace(self.dims, n_layers=1), self.vocab_size)
        net.spec, net.dims = self.spec, self.dims
        return net

    @property
    def has_canon(self) -> bool:
        """Whether any layer asks for Canon layers."""
        return any(kind.canon_at for kind in self.spec.layers(self.dims.n_layers))

    def without_canon(self) -> "Outline":
        """The same network without its Canon layers."""
        plain = {name: dataclasses.replace(kind, canon_at="") for name, kind in self.spec.kinds_of_layers().items()}
        layer = plain.pop("layer")
        return dataclasses.replace(
            self, spec=dataclasses.replace(self.spec, layer=layer, more_layers=plain, canon_at="")
        )


def _form(layer: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    """Parameters and buffers by name and shape: layers in which they are equal count alike."""
    return tuple((name, tensor.shape) for name, tensor in layer.state_dict(keep_vars=True).items())
