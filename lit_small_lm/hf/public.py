"""A public configuration in our terms, and the exception for what no public class has."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lit_small_lm.backbone import BackboneSpec
from lit_small_lm.shapes import FixedShape


class Unfit(Exception):
    """A backbone that a public class cannot express; the message says which part of it."""

    def __init__(self, text: str, faults: int = 1) -> None:
        super().__init__(text)
        self.faults = faults
        """How many parts do not fit: the class with the fewest comes nearest."""


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
    mask_id: int | None = None
    """The token that a masked-diffusion model fills in; None for the others."""
