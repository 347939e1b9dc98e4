"""Which samplers go with the networks of an objective: those that ask under a visibility it trained them for."""

from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Decoding, Objective, Sampler, known


def goes_with(sampler: Sampler | type[Sampler], decoding: Decoding) -> bool:
    """Whether networks that may be asked in this way answer what the sampler asks."""
    answered = [kind in decoding.kinds for kind in sampler.kinds]
    return all(answered) if sampler.needs == "all" else any(answered)


def refuse_unfit(sampler: Sampler, objective: Objective) -> None:
    """Raise RequestError, naming both and what goes instead, unless the sampler goes with the objective's networks."""
    decoding = objective.decoding()
    if goes_with(sampler, decoding):
        return
    joined = " and " if sampler.needs == "all" else " or "
    allowed = ", ".join(name for name, cls in known(Sampler).items() if goes_with(cls, decoding))
    raise RequestError(
        f"sampler: {type(sampler).__name__} needs a {joined.join(sampler.kinds)} network; {type(objective).__name__} "
        f"trains a {' and '.join(decoding.kinds)} one; allowed: {allowed}"
    )
