"""How Lightning's command line reads a configuration: what it may name, and how it says that something is wrong."""

import logging
import os
import re
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import lenient_check
from lightning.pytorch.cli import LightningArgumentParser

from lit_small_lm.cli.lightning_parts import IMPORTS
from lit_small_lm.cli.request import Request
from lit_small_lm.discovery import trusted_packages
from lit_small_lm.errors import RequestError, shown
from lit_small_lm.plugin import Spec


def restrict_parsing() -> None:
    """Let a configuration name Specs, the classes of trusted packages and listed ones of Lightning; nothing else is
    imported for it, and a value that no type asks to be an object stays plain data."""
    set_parsing_settings(
        subclasses_enabled=[Spec],
        import_path_denylist=["*"],
        import_path_allowlist=[*IMPORTS, *trusted_packages()],
        instantiate_subclass_spec_in_any=False,
    )


def begin(request: Request) -> None:
    """Be ready for a command line: nothing is known of an earlier one, and what options are is taken from the sources
    if some of its words may ask for help; it takes a while, and nothing else needs it."""
    ShortErrors.answers.clear()
    set_parsing_settings(docstring_parse_attribute_docstrings=bool(request.passed))


def quiet() -> None:
    """Silence what Lightning says about itself; warnings that concern the user stay."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # stack traces of connections that other processes closed
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no loss is changed in place
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # a norm, a checkpoint


class ShortErrors(LightningArgumentParser):
    """A parser whose errors are one line, without the usage.

    The request has been checked before; what is left are values of Lightning's own types, such as plugins. A question
    that has been asked is not worked out again: of nested classes jsonargparse asks six times what it asked before.
    """

    answers: ClassVar[dict[tuple[Any, ...], Namespace]] = {}
    """Of all parsers, since a command line was begun: (parser, method, arguments) -> what came of it."""

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        return self._once(super().get_defaults, args, kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Namespace:
        return self._once(super().parse_object, args, kwargs)

    def _once(self, method: Callable[..., Namespace], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Namespace:
        asked = (self, method.__name__, repr((args, kwargs, lenient_check.get())))
        if asked not in self.answers:
            self.answers[asked] = method(*args, **kwargs)
        return self.answers[asked].clone()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
        key, value = re.search(r'Parser key "([^"]+)"', message), re.search(r"Given value: (.*)", message)
        if not key or not value:
            raise RequestError(lines[0] if lines else "the options could not be parsed")
        option = next((line for line in lines if line.startswith("Option")), None)
        if option is not None:
            raise RequestError(f"{key[1]}: {option}")
        allowed = "a value or class of this package, of Lightning's plugins, or of --plugins and --allow_import"
        raise RequestError(f"{key[1]}: {shown(value[1])} is not accepted; allowed: {allowed}")
