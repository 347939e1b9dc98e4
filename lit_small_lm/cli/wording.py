"""The words of a refused request: every fault in one line, the most important last."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_small_lm.cli.part import Part, Path
from lit_small_lm.cli.schema import Option, names, quoted
from lit_small_lm.cli.yaml_tree import is_file_name
from lit_small_lm.discovery import not_loaded
from lit_small_lm.errors import WIDTH, RequestError, listing, nearest, one, shown
from lit_small_lm.spec import Spec, known

VALUE, NAME, FILE = 0, 1, 2
"""How important a fault is: a wrong value, an unknown name, a file that cannot be used."""


class Report:
    """Collects faults."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str]] = []

    def add(self, rank: int, text: str) -> None:
        if (rank, text) not in self.faults:
            self.faults.append((rank, text))

    def finish(self) -> None:
        """Raise RequestError if there is a fault: one line each."""
        if self.faults:
            raise RequestError("\n".join(text for _, text in sorted(self.faults, key=lambda fault: fault[0])))


def unknown(
    where: str,
    name: str,
    choices: Iterable[str],
    what: str,
    *,
    prefix: str = "",
    suffix: str = "",
    places: Sequence[Path] = (),
    found: str = "",
) -> str:
    """The line for a name that is not among `choices`; the list of known names is cut to fit.

    Args:
        prefix, suffix: what stands before and after a name that is suggested, such as "--trainer.".
        places: where else in the request the name would be right.
        found: the kind the name is of, if it is known as another.
    """
    head = f"{where}: {quoted(name)} is {f'{one(found)}, not' if found else 'not'} {what}; known: "
    tail = "" if found else _suggestion(name, choices, prefix, suffix, places)
    return head + listing(name, choices, WIDTH - len("error: ") - len(head) - len(tail)) + tail


def no_class(where: str, name: str, option: Option, path: Path, slots: Iterable[type]) -> Iterator[tuple[int, str]]:
    """Why a name is no class for a place: faults, each with how important it is.

    Args:
        where: the place, as an error names it.
        name: what was asked for.
        option: of the place, a slot.
        path: of the place.
        slots: the kinds that the top level takes, beside those of `Spec`.
    """
    kind = option.kind
    if is_file_name(name):
        text = "class_path names a file, and one YAML cannot both name a file and change it; write"
        how = f"{path[-1]}: {shown(name)}, and the changes in a further -c or as --{'.'.join(path)}.OPTION"
        yield NAME, f"{where}: {text} {how}"
    elif lacks := missing_methods(kind, name):
        yield NAME, f"{where}: {quoted(name)} is abstract; it lacks {lacks}"
    else:
        found = kind_of(name, {cls.__name__: cls for cls in (kind, *slots)})
        what = kind.__name__ if found else f"a known {kind.__name__}"
        yield NAME, unknown(where, name, names(option), what, found=found)
        yield from ((FILE, f"--plugins: {why}") for why in ([] if found else not_loaded))


def elsewhere(part: Part, name: str, path: Path = ()) -> Iterator[Path]:
    """Every place of the request, as its classes are now, that has an option of this name."""
    for key, option in part.options().items():
        if key == name:
            yield (*path, key)
        if option.form in ("group", "slot"):
            yield from elsewhere(part.part(key), name, (*path, key))


def kind_of(name: str, others: Mapping[str, Any]) -> str:
    """The kind of a class known by this name, or nothing; `others` are kinds beside those of `Spec`."""
    kinds = {cls.__name__: cls for cls in Spec.__subclasses__()} | dict(others)
    return next((kind for kind, cls in kinds.items() if name in known(cls)), "")


def missing_methods(kind: type, name: str) -> str:
    """What an abstract class of this kind and name would have to define, or nothing if there is no such class."""
    for cls in kind.__subclasses__():
        if cls.__name__ == name and inspect.isabstract(cls):
            return ", ".join(sorted(cls.__abstractmethods__))
        if below := missing_methods(cls, name):
            return below
    return ""


def _suggestion(name: str, choices: Iterable[str], prefix: str, suffix: str, places: Sequence[Path]) -> str:
    if 0 < len(places) <= 3 and prefix:
        return "; did you mean " + " or ".join("--" + ".".join(place) + suffix for place in places) + "?"
    if 0 < len(places) <= 3:
        return "; it belongs under " + " or ".join(".".join(place[:-1]) or "the top level" for place in places)
    return nearest(name, choices, prefix, suffix)
