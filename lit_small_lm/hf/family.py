"""What a public model class has to say to be imported, exported and counted: its configuration and its names."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.hf.names import Entry
from lit_small_lm.shapes import FixedShape


class Unfit(Exception):
    """A backbone that a public class cannot express; the message says which part of it."""


@dataclass(frozen=True)
class Model:
    """A public configuration in our terms."""

    backbone: BackboneSpec
    shape: FixedShape
    vocab_size: int
    """Rows of the embedding, padding rows included."""
    extras: Mapping[str, int] = field(default_factory=dict)
    """Parameters outside the backbone that the public model counts, by name; models with any are for counting only."""
    bidirectional: bool = False
    """Whether its attention looks both ways."""
    max_length: int | None = None
    """`max_position_embeddings`: recorded, not a limit unless positions are learned."""


class Family(abc.ABC):
    """One public model class. Reads plain data; nothing of it is executed."""

    model_type: ClassVar[str]
    """As `config.json` names it."""
    architecture: ClassVar[str]
    """The class that `architectures` of an exported config.json names."""

    @abc.abstractmethod
    def read(self, config: Mapping[str, Any]) -> Model:
        """config.json in our terms, absent fields at the public class's defaults.

        Raises:
            RequestError: a setting that we do not have, named with its value.
        """

    @abc.abstractmethod
    def names(self, model: Model) -> Sequence[Entry]:
        """Every tensor of the network and where it comes from; buffers that are part of the weights included."""

    @abc.abstractmethod
    def write(self, model: Model) -> dict[str, Any]:
        """The config.json that `read` turns into an equal model. Raises Unfit."""
