"""Finds plug-ins: everything a short name on the command line or in a saved config may mean.

Built-in rooms are imported by name; `lit_small_lm.plugins` (research variants), the entry-point group
`lit_small_lm.plugins` of installed distributions and files or folders of the user are searched. A plug-in that fails
to import is a warning that names file and exception, and the rest load.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from lit_small_lm.errors import RequestError, place_of, shown
from lit_small_lm.spec import PLUGIN_API, Spec, class_path, kinds, known, origin

GROUP = "lit_small_lm.plugins"
USER_PACKAGE = "lit_small_lm_user"
BUILT_IN = (
    "backbone",
    "shapes",
    "nn",
    "objectives",
    "samplers",
    "data.sources",
    "data.tables",
    "data.responses",
    "data.mixture",
    "data.tokenizer",
    "training.optim",
    "training.muon",
)


class PluginWarning(UserWarning):
    """A plug-in could not be loaded."""


class OtherInterface(ImportError):
    """A plug-in was written for another version of the contracts."""


class OpenedWarning(UserWarning):
    """A module of the user's was imported because a command said so."""


class ModuleName(str):
    """A module of the user's, where Python finds modules, that a command opens with `--allow_import`."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a Spec class comes from, as recorded in checkpoints and shown by `lit-small-lm plugins`."""

    kind: str
    name: str
    class_path: str
    source: str
    """"built-in", "plugin", "file PATH" or "DISTRIBUTION VERSION"."""
    digest: str
    """SHA-256 of the defining file."""


_DISTRIBUTIONS: dict[str, str] = {}
_OPENED: dict[str, None] = {}
_DECLARED = re.compile(r"^LIT_SMALL_LM_PLUGIN_API\s*=\s*(\d+)", re.MULTILINE)
not_loaded: list[str] = []
"""Why plug-ins could not be loaded, as of the last `discover`; a name that is not known may have been theirs."""


def discover(paths: Iterable[str | Path] = ()) -> None:
    """Import every built-in, shipped, installed and user plug-in; safe to call again.

    Args:
        paths: files (`x.py`) or folders (every `*.py` in them, and packages) of the user, or names of modules.

    Raises:
        RequestError: a path does not exist or cannot be a plug-in, a file or module named here cannot be loaded, or two
            classes share a name. What else cannot be loaded is a warning.
    """
    not_loaded.clear()
    for room in BUILT_IN:
        _import_all(f"lit_small_lm.{room}")
    _import_all(GROUP)
    for entry in importlib.metadata.entry_points(group=GROUP):
        module = importlib.util.find_spec(entry.module.split(".")[0])
        file = Path(module.origin) if module is not None and module.origin else None
        if _attempt(entry.value, entry.load, file) and entry.dist is not None:
            _DISTRIBUTIONS[entry.module.split(".")[0]] = f"{entry.dist.name} {entry.dist.version}"
    for path in paths:
        _open(path) if isinstance(path, ModuleName) else _load_path(Path(path))
    if not_loaded:
        more = f"; and {len(not_loaded) - 1} more plug-ins were not loaded" if len(not_loaded) > 1 else ""
        warnings.warn(not_loaded[0] + more, PluginWarning, stacklevel=2)
    for kind in kinds().values():
        known(kind)


def origins() -> list[Origin]:
    """Every known Spec class with where it comes from, by kind and name."""
    return [describe(cls, kind) for kind, base in kinds().items() for cls in known(base).values()]


def trusted_packages() -> list[str]:
    """Packages whose classes a configuration may name: ours, the user's plug-ins and modules, installed plug-ins."""
    return ["lit_small_lm", USER_PACKAGE, *sorted(_DISTRIBUTIONS), *_OPENED]


def describe(cls: type[Spec], kind: str = "") -> Origin:
    """Where one Spec class comes from."""
    file, module = Path(origin(cls)), cls.__module__
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    if module.startswith(USER_PACKAGE):
        source = f"file {file}"
    elif module.startswith(GROUP):
        source = "plugin"
    elif module.startswith("lit_small_lm."):
        source = "built-in"
    else:
        source = _DISTRIBUTIONS.get(module.split(".")[0], module)
    return Origin(kind, cls.__name__, class_path(cls), source, digest)


def _import_all(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        return
    module = importlib.import_module(name)
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}.", onerror=lambda _: None):
        if ".test_" in info.name:
            continue
        if name == GROUP:
            _attempt(info.name, functools.partial(importlib.import_module, info.name))
        else:
            importlib.import_module(info.name)


def _attempt(what: str, load: Callable[[], object], file: Path | None = None) -> bool:
    """Load a plug-in that others can do without; `file` may declare the interface it was written for."""
    try:
        if file is not None and file.suffix == ".py":
            _refuse_other_interface(file)
        load()
        return True
    except RequestError:
        raise
    except (Exception, SystemExit) as error:  # a broken plug-in must not take the others down
        kind, text = type(error).__name__, shown(str(error))
        why = text if isinstance(error, OtherInterface) else f"{kind} in {place_of(error)}: {text}"
        not_loaded.append(f"plug-in {what} was not loaded: {why}")
        return False


def _refuse_other_interface(file: Path) -> None:
    declared = _DECLARED.search(file.read_text("utf-8", errors="replace"))
    if declared and int(declared[1]) != PLUGIN_API:
        raise OtherInterface(f"written for plug-in interface {declared[1]}; this is interface {PLUGIN_API}")


def _open(name: ModuleName) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise RequestError(f"--allow_import: {shown(str(name))}; allowed: the name of a module, such as mine.parts")
    if not _attempt(name, functools.partial(importlib.import_module, name)):
        raise RequestError(f"--allow_import: {not_loaded.pop()}")
    place = sys.modules[name].__file__ if "__file__" in vars(sys.modules[name]) else "a built-in module"
    if name not in _OPENED:
        text = f"--allow_import {name}: {shown(str(place))} was run, and a configuration may name its classes"
        warnings.warn(text, OpenedWarning, stacklevel=3)
    _OPENED[str(name)] = None


def _load_path(path: Path) -> None:
    if not path.exists():
        raise RequestError(f"--plugins: {shown(str(path))} does not exist (looked in {Path.cwd()})")
    files = [path] if not path.is_dir() else sorted(_plugin_files(path))
    if not files or any(file.suffix != ".py" for file in files):
        raise RequestError(f"--plugins: {shown(str(path))} holds no Python file (*.py)")
    if USER_PACKAGE not in sys.modules:
        package = sys.modules[USER_PACKAGE] = types.ModuleType(USER_PACKAGE)
        package.__path__ = []
    for file in files:
        if not _attempt(str(file), functools.partial(_load_file, file), file) and path.is_file():
            raise RequestError(f"--plugins: {not_loaded.pop()}")


def _plugin_files(folder: Path) -> Iterable[Path]:
    if (folder / "__init__.py").exists():
        return [folder / "__init__.py"]
    packages = [child / "__init__.py" for child in folder.iterdir() if (child / "__init__.py").exists()]
    return [file for file in folder.glob("*.py") if not file.name.startswith("test_")] + packages


def _load_file(file: Path) -> None:
    stem = re.sub(r"\W|^(?=\d)", "_", file.parent.name if file.name == "__init__.py" else file.stem)
    name = f"{USER_PACKAGE}.{stem}"  # an identifier, as class paths in configs have to be: 02-mine.py is _02_mine
    loaded = sys.modules.get(name)
    if loaded is not None:
        if Path(loaded.__file__).resolve() != file.resolve():
            raise RequestError(f"--plugins: two files are named {stem}: {loaded.__file__} and {file}")
        return
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    setattr(sys.modules[USER_PACKAGE], stem, module)
