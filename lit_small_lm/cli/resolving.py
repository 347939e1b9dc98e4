"""A configuration with everything that it leaves open filled in, as a run would write it into its config.yaml."""

from lit_small_lm.cli.lit import LitCLI, quiet, restrict_parsing, roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.cli.run_options import Start


def resolved(text: str) -> str:
    """A configuration as YAML -> the same with all of its options. Raises RequestError if something in it is wrong."""
    quiet()
    restrict_parsing()
    request = check_request([], roots(), base=text)
    return _Resolver(None, Start(), "test", request).config_text


class _Resolver(LitCLI):
    """Parses, and neither builds nor runs; what depends on the machine stays open."""

    def before_instantiate_classes(self) -> None:
        self.config_text = self.dumped()

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass
