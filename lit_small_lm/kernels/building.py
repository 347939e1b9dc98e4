"""Compiling the kernels and loading them, where a network is compiled anyway.

They are compiled by the compiler that torch.compile takes, once for a machine: the file lies beside what torch.compile
keeps, and its name holds digests of what it was made of and of what it holds. It appears there whole, whether several
processes compile it at once or one is killed meanwhile, and is not loaded where it is damaged. Where it cannot be made,
everything is computed as without it; LIT_SMALL_LM_KERNELS=off asks for that.
"""

import hashlib
import os
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

from lit_small_lm.errors import RequestError, shown

NAMES = ("kernels.cpp", "attention.h", "head.h", "products.h", "strips.h", "matrix.h")
SOURCES = tuple(Path(__file__).parent / name for name in NAMES)
CAPABILITY = "AVX512"
"""The only processors that they were measured on."""
FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma",
    "-mf16c", f"-DCPU_CAPABILITY={CAPABILITY}", f"-DCPU_CAPABILITY_{CAPABILITY}",
)  # fmt: skip
"""As PyTorch compiles its own for such processors."""
LONGEST = 300.0
"""Seconds that compiling may take: 11 on one core of 2022."""
VARIABLE = "LIT_SMALL_LM_KERNELS"
ANSWERS = ("on", "off")

_found: dict[str, bool] = {}
"""Whether they were loaded, once that was tried."""


def loaded() -> bool:
    """Whether this process has them."""
    return _found.get("loaded", False)


def load(folder: Path) -> None:
    """Have them in this process from now on, if they suit it: from a folder, which others must not be able to write to,
    and where they are compiled if they are not there. Where that fails it is said once, as a warning.

    Raises:
        RequestError: the environment variable is neither of its answers.
    """
    answer = os.environ.get(VARIABLE, "on")
    if answer not in ANSWERS:
        raise RequestError(f"{VARIABLE}: {shown(answer)}; allowed: {', '.join(ANSWERS)}")
    if not _found:
        _found["loaded"] = answer == "on" and suited() and _loaded(folder)


def suited() -> bool:
    """Whether they are for this processor, and this build of PyTorch has what they call."""
    return torch.backends.cpu.get_cpu_capability() == CAPABILITY and torch.backends.mkldnn.is_available()


def _loaded(folder: Path) -> bool:
    try:
        torch.ops.load_library(_whole(folder) or build(folder))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(f"compile: the kernels of this package are not used: {_reason(error)}", stacklevel=2)
        return False
    return True


def _whole(folder: Path) -> Path | None:
    """The file, if it is there and holds what was written to it: one that was cut short would end the process."""
    for file in folder.glob(f"{_name()}_*.so"):
        if file.stem.endswith(_digest(file.read_bytes())):
            return file
    return None


def build(folder: Path) -> Path:
    """Compile them into a file of this folder, whose name ends with its own digest.

    Raises:
        OSError: no compiler, or no place.
        subprocess.SubprocessError: the compiler failed, or took too long.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        whole = Path(made) / "kernels.so"
        subprocess.run(  # noqa: S603 (a compiler that the user names, our own words)
            _command(whole), check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=LONGEST
        )
        file = folder / f"{_name()}_{_digest(whole.read_bytes())}.so"
        os.replace(whole, file)
    return file


def _command(to: Path) -> list[str]:
    root = Path(torch.__file__).parent
    folders = root / "include", root / "include" / "torch" / "csrc" / "api" / "include"
    seen = [part for folder in folders for part in ("-isystem", str(folder))]
    libraries = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    return [*_compiler(), *FLAGS, *seen, str(SOURCES[0]), "-o", str(to), *libraries]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "g++")


def _name() -> str:
    """Of the file, by all that it is made of."""
    sources = (source.read_text(encoding="utf-8") for source in SOURCES)
    made_of = [torch.__version__, torch.__file__, *_compiler(), *FLAGS, *sources]
    return f"lit_small_lm_{_digest(chr(0).join(made_of).encode())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _reason(error: Exception) -> str:
    """On one line, what the compiler said first where it said something."""
    said = getattr(error, "stderr", None) or str(error)
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or [type(error).__name__]
    return lines[0].strip()[:200]
