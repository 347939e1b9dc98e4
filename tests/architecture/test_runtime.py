"""What an import really loads: in a fresh process, because an earlier test may have imported everything."""

import json
import subprocess
import sys

import pytest

REPORT = """
import json, os, sys
packages = [sys.modules[name] for name in ("lit_small_lm", "lit_small_lm.plugins") if name in sys.modules]
homes = [home for package in packages for home in package.__path__]
files = {}
for name, module in list(sys.modules.items()):
    file = os.path.realpath(getattr(module, "__file__", None) or "")
    if any(file.startswith(os.path.realpath(home) + os.sep) for home in homes):
        files.setdefault(file, []).append(name)
print(json.dumps({"loaded": sorted({name.split(".")[0] for name in sys.modules}), "files": files}))
"""


def after(statement):
    """What is loaded in a new process after a statement: top-level names, and the package's files by name."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{REPORT}"], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_itself_is_light():
    loaded = after("import lit_small_lm; lit_small_lm.__version__")["loaded"]
    assert {"torch", "lightning", "transformers", "datasets", "numpy", "jsonargparse"} & set(loaded) == set()
    assert "lit_small_lm" in loaded


@pytest.mark.parametrize("argument", ["--help", "--version", "fitt"])
def test_the_first_answers_do_not_wait_for_torch(argument):
    """Help, version and a mistyped command."""
    loaded = after(f"from lit_small_lm.__main__ import main; main([{argument!r}])")["loaded"]
    assert {"torch", "lightning", "numpy"} & set(loaded) == set()


@pytest.fixture(scope="module")
def with_checkpoints():
    """What reading a checkpoint loads, the discovery of every plug-in included."""
    return after("import lit_small_lm.checkpoint, lit_small_lm.discovery as d; d.discover()")


def test_a_checkpoint_is_read_without_lightning(with_checkpoints):
    """A trained model is used with PyTorch alone."""
    loaded = set(with_checkpoints["loaded"])
    assert {"lightning", "pytorch_lightning", "transformers", "datasets"} & loaded == set()
    assert "torch" in loaded


def test_no_class_is_importable_under_two_names(with_checkpoints):
    """No file is loaded as two modules: a class in it would be two classes of one name."""
    files = with_checkpoints["files"]
    assert len(files) > 20
    assert {file: names for file, names in files.items() if len(names) > 1} == {}
