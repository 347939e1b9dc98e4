"""What every command with a fault has to say and leave."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lit_small_lm.__main__ import main

TINY = [
    "--model", "AutoregressiveLM", "--model.shape.dim", "16", "--model.shape.n_layers", "1",
    "--model.shape.n_heads", "2", "--data.tokenizer", "Bytes", "--data.seq_len", "16", "--data.batch_size", "4",
    "--trainer.max_steps", "4", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
    "--trainer.enable_progress_bar", "false", "--checkpoints.every_n_steps", "2",
]  # fmt: skip


class Ended(NamedTuple):
    """What a command left."""

    status: int
    lines: list[str]
    """Of standard error."""


@pytest.fixture(scope="session")
def tiny(tiny_text: Path) -> list[str]:
    """Options of a tiny model on the tiny corpus."""
    return [*TINY, "--data.source.path", str(tiny_text)]


@pytest.fixture(scope="session")
def two_layers(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two layers, made once."""
    folder = tmp_path_factory.mktemp("two_layers") / "run"
    assert main(["fit", *tiny, "--model.shape.n_layers", "2", "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def fit(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`fit("--optim.lr", "1")` makes a short run in an empty working directory, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Ended:
        source = [] if "--data.source.path" in argv else ["--data.source.path", str(tiny_text)]
        status = main(["fit", *TINY, *source, *argv])
        return Ended(status, capsys.readouterr().err.splitlines())

    return run


@pytest.fixture
def meets(fit: Callable[..., Ended]) -> Callable[[dict], None]:
    """`meets(case)` runs a command with a fault and holds what it says and leaves against what it has to.

    A case has `argv`, `says` (what the last line holds), and perhaps `files` by name and `status`.
    """

    def check(case: dict) -> None:
        write(case.get("files", {}))
        before = contents()
        status, lines = fit(*case["argv"])
        assert status == case.get("status", 2)
        assert lines[-1].startswith("error: ") and len(lines[-1]) <= 300 and len(lines) <= 5
        assert [part for part in case["says"] if part not in lines[-1]] == [], lines[-1]
        assert all(line.isprintable() for line in lines) and "Traceback" not in "".join(lines)
        assert status == 1 or contents() == before

    return check


@pytest.fixture(name="write")
def writing(fit: Callable[..., Ended]) -> Callable[[dict[str, str | bytes]], None]:
    """`write({"c.yaml": "..."})` puts files into the working directory."""
    return write


def write(files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def contents() -> dict[str, bytes]:
    """Everything below the working directory, byte for byte."""
    files = (file for file in Path().rglob("*") if "__pycache__" not in file.parts)
    return {str(file): file.read_bytes() if file.is_file() else b"" for file in files}


@pytest.fixture
def snapshot() -> Callable[[], dict[str, bytes]]:
    """`snapshot()` is everything below the working directory, byte for byte."""
    return contents


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """`refused(argv, "this", "that")`: the command leaves everything as it was, and ends with status 2 (or another) and
    a line that holds all that."""

    def check(argv: list[str], *says: str, status: int = 2) -> None:
        before = contents()
        assert main(argv) == status
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("error: ") and len(lines[-1]) <= 300 and len(lines) <= 5
        assert [part for part in says if part not in lines[-1]] == [], lines[-1]
        assert "Traceback" not in "".join(lines) and contents() == before

    return check


@pytest.fixture
def work_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`work_on(folder)` copies a run into an empty working directory, where it is called "run"."""

    def copy(folder: Path) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copytree(folder, "run")
        capsys.readouterr()

    return copy
