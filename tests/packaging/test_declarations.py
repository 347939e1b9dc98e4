"""What pyproject.toml, constraints.txt and the hooks say has to agree."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def requirements(project):
    """Every direct requirement, those of the extras too."""
    extras = project["project"]["optional-dependencies"].values()
    return [Requirement(line) for line in (*project["project"]["dependencies"], *sum(extras, []))]


def imported(folder):
    """Top-level names that the files of a folder import, tests left out, and what comes with Python too."""
    names = set()
    for path in folder.rglob("*.py"):
        nodes = [] if path.name.startswith("test_") else ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for node in nodes:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"lit_small_lm"}


def pins(python):
    """Name -> version of what constraints.txt pins on Linux for a Python version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            surroundings = {"python_version": python, "sys_platform": "linux"}
            if pin.marker is None or pin.marker.evaluate(surroundings):
                (only,) = pin.specifier
                assert only.operator == "==", line
                assert pin.name not in found, f"{pin.name} is pinned twice on Python {python}"
                found[canonicalize_name(pin.name)] = only.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(requirements, python):
    pinned = pins(python)
    names = {canonicalize_name(requirement.name) for requirement in requirements}
    assert names - set(pinned) == set()
    wrong = [str(r) for r in requirements if not r.specifier.contains(pinned[canonicalize_name(r.name)])]
    assert wrong == []


@pytest.mark.parametrize("folder", ["lit_small_lm", "plugins"])
def test_every_imported_package_is_required(requirements, folder):
    owners = packages_distributions()
    required = {canonicalize_name(requirement.name) for requirement in requirements}
    found = imported(ROOT / folder)
    assert found or folder == "plugins"
    assert [name for name in sorted(found) if not required & set(map(canonicalize_name, owners.get(name, [])))] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_torch_is_pinned_without_a_build_tag(python):
    """A pin without a local tag is satisfied by the CPU and by the CUDA build, and by nothing newer."""
    assert "+" not in pins(python)["torch"]


def test_the_bad_lightning_releases_cannot_be_chosen(requirements):
    (lightning,) = [requirement for requirement in requirements if requirement.name == "lightning"]
    assert not any(lightning.specifier.contains(bad) for bad in ("2.6.2", "2.6.3", "2.7.0"))
    assert lightning.specifier.contains("2.6.6")


def test_the_hooks_use_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    needed = {line for repo in config["repos"] for hook in repo["hooks"] for line in hook["additional_dependencies"]}
    assert f"ruff=={pins('3.13')['ruff']}" in needed
    assert [line for line in needed if line.startswith("ruff") and not line.endswith(pins("3.13")["ruff"])] == []


def test_every_room_of_the_core_is_a_declared_package(project):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "lit_small_lm").rglob("__init__.py")}
    rooms = {".".join(folder.parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == rooms | {"lit_small_lm.configs", "lit_small_lm.plugins"}
