"""What a public model class has to say to be imported, exported and counted: its configuration and its names."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lit_small_lm.errors import RequestError
from lit_small_lm.hf.comparison import differences
from lit_small_lm.hf.names import Entry
from lit_small_lm.hf.public import Model, Unfit
from lit_small_lm.hf.settings import Settings

ANY_CLASS = {"is_encoder_decoder": False, "add_cross_attention": False, "per_layer_config": None}
"""Fields of any config.json that only have one value we know."""


class Family(abc.ABC):
    """One public model class. Reads plain data; nothing of it is executed."""

    model_type: ClassVar[str]
    """As `config.json` names it."""
    architecture: ClassVar[str]
    """The class that `architectures` of an exported config.json names."""
    defaults: ClassVar[Mapping[str, Any]]
    """The public class's own value of every field that is read."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Fields that we know with one value only, which is the public class's default."""
    prefix: ClassVar[str] = "model."
    """What names of tensors begin with; files of a bare model, without its head, leave it away."""
    derived: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq",)
    """Endings of tensors that older files hold although they follow from the configuration."""

    def read(self, config: Mapping[str, Any]) -> Model:
        """config.json in our terms, absent fields at the public class's defaults.

        Raises:
            RequestError: a setting that we do not have, named with its value.
        """
        settings = Settings(config, self.defaults)
        settings.only({**ANY_CLASS, **self.fixed})
        return self.model(settings)

    @abc.abstractmethod
    def model(self, s: Settings) -> Model:
        """The model that these fields describe. Raises RequestError."""

    @abc.abstractmethod
    def names(self, model: Model) -> Sequence[Entry]:
        """Every tensor of the network and where it comes from; buffers that are part of the weights included."""

    def write(self, model: Model) -> dict[str, Any]:
        """The config.json that `read` turns into an equal model.

        What only matters while training (initial weights, losses beside the likelihood) may differ.

        Raises:
            Unfit: what the class does not have, named with its value.
        """
        config = {"model_type": self.model_type, "architectures": [self.architecture], **self.config(model)}
        try:
            found = differences(model, self.read(config))
        except RequestError as error:
            raise Unfit(f"{self.architecture}: {error}") from error
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise Unfit(f"{self.architecture} has no {found[0]}{more}", len(found))
        return config

    @abc.abstractmethod
    def config(self, model: Model) -> dict[str, Any]:
        """The fields that come nearest to a model; `write` checks how near. May raise Unfit."""
