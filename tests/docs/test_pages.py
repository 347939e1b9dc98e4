"""Every page of the documentation and the README runs as it stands, on a small corpus and for two steps."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("pages.py")
pages = SimpleNamespace(**runpy.run_path(str(RUNNER)))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [
    page for page in PAGES if any(b.language == "python" or pages.commands(b.text) for b in pages.blocks(page))
]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_pages_have_code():
    assert len(WITH_CODE) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_page_runs(page, tmp_path, tiny_text):
    command = [sys.executable, str(RUNNER), str(page), str(tiny_text)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_stands_in_the_contents():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert set(_files(nav)) == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if "docs" in page.parts}


@pytest.mark.parametrize("folder", ["families", "shapes"])
def test_the_tables_of_configurations_hold_every_file(folder):
    generate = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "generate.py")))
    page = generate.on_page_markdown((ROOT / "docs" / "models.md").read_text())
    for file in (ROOT / "configs" / folder).glob("*.yaml"):
        assert f"| `{file.name}` | {file.read_text().splitlines()[0].removeprefix('# ')}" in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "site" / "commands" / "index.html").read_text()
    assert "--trainer.max_steps" in commands and "lit-small-lm prepare" in commands
    assert "LayerNormScaling" in (tmp_path / "site" / "plugins" / "index.html").read_text()


def _files(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [file for item in (nav.values() if isinstance(nav, dict) else nav) for file in _files(item)]
