"""What lies in the environment stays there; what is printed as a hint opens nothing to the network."""

import os
from pathlib import Path

import pytest

from lit_small_lm.errors import RunError
from lit_small_lm.training.compiled import VARIABLE, cache_folder, refuse_foreign_cache

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")
PLUGIN = """from lightning.pytorch import Callback


class Raises(Callback):
    "Raises."

    def on_train_batch_end(self, *_):
        raise ValueError("on purpose")
"""
ROOT = Path(__file__).resolve().parents[2]


def test_secrets_are_in_no_file_and_no_message(fit, monkeypatch, capsys):
    for name in SECRETS:
        monkeypatch.setenv(name, f"planted-{name.lower()}")
    Path("mine.py").write_text(PLUGIN)
    said = []
    assert fit("--run_dir", "run", "--trainer.max_steps", "1").status == 0
    for argv in (["--trainer.callbacks=Raises", "--plugins", "mine.py", "--run_dir", "b"], ["--optim.lr", "much"]):
        ended = fit(*argv)
        assert ended.status in (1, 2)
        said += ended.lines
    assert any("on purpose" in line for line in said), "an error of the user's own code was reported"
    assert "planted-" not in "".join(said) + capsys.readouterr().out
    files = [file for file in Path().rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert len(files) >= 8
    assert [str(file) for file in files if b"planted-" in file.read_bytes()] == []


def test_hints_leave_viewers_on_this_machine():
    texts = [*ROOT.glob("lit_small_lm/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    lines = [line for file in texts for line in file.read_text().splitlines() if "tensorboard" in line]
    assert len(lines) > 3
    assert [line for line in lines if "--bind_all" in line or "--host" in line] == []


def test_compiled_code_is_taken_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new" / "cache"))
    refuse_foreign_cache()
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    cache_folder().chmod(0o775)  # as torch makes it under a umask of 002
    refuse_foreign_cache()
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    (cache_folder() / "code").touch()
    cache_folder().chmod(0o777)
    with pytest.raises(RunError, match="can be written to by others"):
        refuse_foreign_cache()
    cache_folder().chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(RunError, match="belongs to another user"):
        refuse_foreign_cache()


def test_the_folder_is_the_one_that_torch_takes(monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv(VARIABLE, raising=False)
    assert str(cache_folder()) == default_cache_dir()
