"""The package's source files, parsed, and the graph of who imports whom, read from the syntax trees alone."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lit_small_lm"
PLUGINS = f"{PACKAGE}.plugins"


@dataclass(frozen=True)
class Module:
    """One source file of the package or of a shipped plug-in."""

    name: str
    """Dotted name it is imported by."""
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @property
    def is_test(self) -> bool:
        return self.path.name.startswith("test_")

    @property
    def is_plugin(self) -> bool:
        return (self.name + ".").startswith(PLUGINS + ".")

    def at(self, node: ast.AST) -> str:
        """`file:line`, for a failure's message."""
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"

    def imports(self) -> Iterator[str]:
        """Dotted names of everything imported anywhere in the file, inside functions too.

        `from a import b` yields both a and a.b, since b may be a module. What only a type checker sees is left out.
        """
        for node in _run_time(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        is_package = self.path.name == "__init__.py"
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, node.module] if node.module else parts)


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_time(child)


def _read(folder: Path, package: str) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield Module(".".join([package, *(part for part in parts if part != "__init__")]), path)


@pytest.fixture(scope="session")
def modules() -> dict[str, Module]:
    """Every module of the core and of the shipped plug-ins, by dotted name; tests beside plug-ins left out."""
    found = [*_read(ROOT / PACKAGE, PACKAGE), *_read(ROOT / "plugins", PLUGINS)]
    assert len(found) > 20, "the sources were not found"
    return {module.name: module for module in found if not module.is_test}


@pytest.fixture(scope="session")
def core(modules) -> dict[str, Module]:
    """The modules of the core alone."""
    return {name: module for name, module in modules.items() if not module.is_plugin}


class Graph:
    """Arrows between the package's own modules."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.modules = modules
        self.arrows = {name: {to for to in m.imports() if to in modules and to != name} for name, m in modules.items()}

    def runs(self, name: str) -> set[str]:
        """Every module of the package that importing `name` runs, itself included.

        Importing a.b.c runs a and a.b too. All imports count, those inside functions as well.
        """
        seen, waiting = set(), [name]
        while waiting:
            here = waiting.pop()
            if here in seen or here not in self.modules:
                continue
            seen.add(here)
            parent = here.rpartition(".")[0]
            waiting += [*self.arrows[here], *([parent] if parent else [])]
        return seen

    def cycles(self) -> list[list[str]]:
        """The groups of two or more modules that import each other, directly or not; empty for a sound package."""
        reach = {name: self._reach(name) for name in self.arrows}
        groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in self.arrows if a in reach[a]}
        return sorted(sorted(group) for group in groups)

    def _reach(self, name: str) -> set[str]:
        seen, waiting = set(), list(self.arrows[name])
        while waiting:
            here = waiting.pop()
            if here not in seen:
                seen.add(here)
                waiting += self.arrows[here]
        return seen


@pytest.fixture(scope="session")
def graph(modules) -> Graph:
    """The import graph of the package and its plug-ins."""
    return Graph(modules)


@pytest.fixture(scope="session")
def make_graph():
    """`make_graph({"a": "import b", ...})` -> the Graph of sources given as text; shows that the checks can fail."""

    def make(sources: dict[str, str]) -> Graph:
        made = {}
        for name, text in sources.items():
            module = made[name] = Module(name, Path(f"{name}.py"))
            module.__dict__["text"] = text  # where cached_property keeps its value
            module.__dict__["tree"] = ast.parse(text)
        return Graph(made)

    return make
