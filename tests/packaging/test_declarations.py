"""What pyproject.toml, constraints.txt and the hooks say has to agree."""

import ast
import contextlib
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
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
    assert {"!=2.6.2", "!=2.6.3"} <= {str(part) for part in lightning.specifier}  # also under a lower floor


def locked():
    """Name -> (version, digests) of requirements-cpu.txt."""
    lines = (ROOT / "requirements-cpu.txt").read_text().replace("\\\n", " ").splitlines()
    entries = [line.split() for line in lines if not line.startswith("#")]
    pairs = [(*entry[0].split("=="), entry[1:]) for entry in entries]
    assert len({name for name, *_ in pairs}) == len(pairs)
    return {canonicalize_name(name): (version, digests) for name, version, digests in pairs}


def test_the_lock_agrees_with_the_constraints(requirements):
    found, pinned = locked(), pins("3.11")
    assert {name: version.removesuffix("+cpu") for name, (version, _) in found.items()} == {
        name: pinned.get(name) for name in found
    }
    assert {canonicalize_name(requirement.name) for requirement in requirements} <= set(found)
    assert found["torch"][0].endswith("+cpu")


def test_everything_in_the_lock_has_a_digest():
    for name, (_, digests) in locked().items():
        assert digests, name
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), name


def needs(name):
    """What an installed package requires on Linux; nothing where it is not installed."""
    surroundings = {"python_version": "3.11", "sys_platform": "linux", "extra": ""}
    with contextlib.suppress(PackageNotFoundError):
        for needed in map(Requirement, requires(name) or []):
            if needed.marker is None or needed.marker.evaluate(surroundings):
                yield canonicalize_name(needed.name)


def test_the_lock_holds_what_its_packages_need():
    needed = {name: set(needs(name)) for name in locked()}
    assert sum(map(len, needed.values())) > 100
    assert {name: missing for name, names in needed.items() if (missing := names - set(needed))} == {}


def test_actions_are_pinned_and_may_only_read():
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        text = file.read_text()
        used = re.findall(r"uses: *(\S+)", text)
        assert all(re.search("@[0-9a-f]{40}$", name) for name in used), f"{file.name}: {used}"
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_hooks_use_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    needed = {line for repo in config["repos"] for hook in repo["hooks"] for line in hook["additional_dependencies"]}
    assert f"ruff=={pins('3.13')['ruff']}" in needed
    assert [line for line in needed if line.startswith("ruff") and not line.endswith(pins("3.13")["ruff"])] == []


def test_every_room_of_the_core_is_a_declared_package(project):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "lit_small_lm").rglob("__init__.py")}
    rooms = {".".join(folder.parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == rooms | {"lit_small_lm.configs", "lit_small_lm.plugins"}
