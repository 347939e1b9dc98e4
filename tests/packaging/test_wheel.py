"""The built distribution: what is in it, and that it works away from the source tree."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "lit_small_lm", "plugins", "configs")
ORIGINS = "from lit_small_lm.discovery import discover, origins; discover(); import json; " + (
    "print(json.dumps({o.name: o.source for o in origins()}))"
)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def files_below(folder, *suffixes):
    """Paths of the files of a folder, relative to it, with `/`."""
    found = (path for path in folder.rglob("*") if path.suffix in suffixes and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def finished(*command, cwd, site=None):
    """Standard output of a command that has to succeed; `site` is the only PYTHONPATH."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if site is not None:
        env["PYTHONPATH"] = str(site)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(project, site, cwd):
    """Install a wheel or a project into a folder, with nothing downloaded."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    finished(*PIP, "install", *offline, "--target", str(site), str(project), cwd=cwd)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources to build from, so that nothing is left in them and nothing stale gets in."""
    folder = tmp_path_factory.mktemp("tree")
    for name in BUILT_FROM:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel's path."""
    folder = tmp_path_factory.mktemp("wheel")
    finished(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), ".", cwd=tree)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("site")
    install(wheel, folder, folder)
    return folder


def test_the_wheel_holds_every_subpackage_plugin_and_config(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"lit_small_lm/{name}" for name in files_below(ROOT / "lit_small_lm", ".py", ".typed", ".cpp", ".h")}
    expected |= {f"lit_small_lm/plugins/{name}" for name in files_below(ROOT / "plugins", ".py", ".yaml", ".md")}
    expected |= {f"lit_small_lm/configs/{name}" for name in files_below(ROOT / "configs", ".py", ".yaml")}
    assert expected - held == set()
    extra = {name for name in held - expected if ".dist-info/" not in name}
    assert extra <= {"lit_small_lm/py.typed"}


def test_the_wheel_installs_one_top_level_name(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lit_small_lm"}


def test_the_wheel_carries_licence_and_script(wheel):
    archive = zipfile.ZipFile(wheel)
    texts = {name.split(".dist-info/")[-1]: name for name in archive.namelist() if ".dist-info/" in name}
    assert archive.read(texts["licenses/LICENSE"]).decode().lstrip().startswith("Apache License")
    assert "lit-small-lm = lit_small_lm.__main__:main" in archive.read(texts["entry_points.txt"]).decode()
    metadata = archive.read(texts["METADATA"]).decode().splitlines()
    assert {"License-Expression: Apache-2.0", "Requires-Python: >=3.10"} <= set(metadata)


def test_an_installed_wheel_works_away_from_the_sources(site, tmp_path):
    where = finished(sys.executable, "-c", "import lit_small_lm; print(lit_small_lm.__file__)", cwd=tmp_path, site=site)
    assert Path(where.strip()).is_relative_to(site)
    assert finished(sys.executable, "-m", "lit_small_lm", "--version", cwd=tmp_path, site=site).startswith(
        "lit-small-lm "
    )
    shipped = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    script = "import importlib, sys; [importlib.import_module('lit_small_lm.plugins.' + name) for name in sys.argv[1:]]"
    finished(sys.executable, "-c", script, *sorted(shipped), cwd=tmp_path, site=site)
    found = json.loads(finished(sys.executable, "-c", ORIGINS, cwd=tmp_path, site=site).splitlines()[-1])
    assert found["PreNorm"] == "built-in"
    assert "plugin" in found.values()


def test_installed_configs_are_readable(site, tmp_path):
    script = (
        "from importlib.resources import files; print(files('lit_small_lm.configs').joinpath('demo.yaml').read_text())"
    )
    printed = finished(sys.executable, "-c", script, cwd=tmp_path, site=site)
    assert printed.strip() == (ROOT / "configs" / "demo.yaml").read_text().strip()


def test_an_installed_wheel_runs_the_demo(site, tiny_text, tmp_path):
    """The shipped demo configuration trains and leaves a checkpoint, with no source tree in reach."""
    demo = site / "lit_small_lm" / "configs" / "demo.yaml"
    short = ("--data.source.path", str(tiny_text), "--trainer.max_steps", "2", "--run_dir", str(tmp_path / "run"))
    finished(sys.executable, "-m", "lit_small_lm", "fit", "-c", str(demo), *short, cwd=tmp_path, site=site)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == ["step=00000002.ckpt"]


def test_an_editable_install_has_plugins_under_one_name_only(tree, tmp_path):
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    finished(sys.executable, "-c", build, str(tmp_path), cwd=tree)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "editable")
    script = (
        "import sys, site; site.addsitedir(sys.argv[1]); import importlib.util as u, lit_small_lm.configs as c, "
        "lit_small_lm.plugins as p; print(u.find_spec('plugins'), u.find_spec('configs'), p.__file__, c.__file__)"
    )
    no_other_packages = "-S"  # this very package may be installed beside the interpreter
    printed = finished(sys.executable, no_other_packages, "-c", script, str(tmp_path / "editable"), cwd=tmp_path)
    homes = [str(tree / folder / "__init__.py") for folder in ("plugins", "configs")]
    assert printed.split() == ["None", "None", *homes]


PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "acme-norms"
version = "1.2"
[project.entry-points."lit_small_lm.plugins"]
acme = "acme_norms"
broken = "acme_broken"
[tool.setuptools]
py-modules = ["acme_norms", "acme_broken"]
"""
SCHEME = '''
"""A norm scheme of another distribution."""
from dataclasses import dataclass
from lit_small_lm.nn.residual import PreNorm
from lit_small_lm.plugin import NormScheme
from lit_small_lm.nn.norms import RMSNorm
from lit_small_lm.plugin import Norm

@dataclass(frozen=True, kw_only=True)
class AcmeScheme(NormScheme):
    """Like PreNorm."""
    norm: Norm = RMSNorm()
    """The norm."""
    def build(self, site):
        return PreNorm(norm=self.norm).build(site)
    def close(self, dim):
        return PreNorm(norm=self.norm).close(dim)
'''


def test_a_third_party_distribution_is_discovered(site, tmp_path):
    """Its plug-in is listed with the distribution's name; the one that fails to import is a warning."""
    project, theirs = tmp_path / "project", tmp_path / "theirs"
    project.mkdir()
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "acme_norms.py").write_text(SCHEME)
    (project / "acme_broken.py").write_text("raise OSError('no such thing')")
    install(project, theirs, tmp_path)
    both = os.pathsep.join([str(site), str(theirs)])
    env = {**os.environ, "PYTHONPATH": both}
    command = [sys.executable, "-c", ORIGINS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["AcmeScheme"] == "acme-norms 1.2"
    assert "acme_broken" in done.stderr
    assert "no such thing" in done.stderr
