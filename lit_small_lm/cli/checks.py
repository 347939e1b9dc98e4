"""What `lit-small-lm doctor` looks at, one function a topic: each says what is usable here, what is not, and why.

Heavy or optional packages are imported inside the checks, so that a missing one is a finding and not a crash.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "no", "stop"]
"""usable; usable with a drawback; not usable, which others make up for; without it there is no training."""
GIB = 2**30
PACKAGE = "lit-small-lm"
HUB = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    topic: str
    name: str
    state: State
    what: str
    """What was found, and why it is so."""
    cure: str = ""
    """What to do about it; empty where there is nothing to do."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """How far the checks go."""

    full: bool = False
    """Compile, communicate and use the network, instead of looking whether it could be done."""
    plugins: Sequence[str] = ()


# ----------------------------------------------------------------------------------------------------------- versions
def versions(scope: Scope) -> Iterator[Finding]:
    """Our own version and its requirements; of the optional packages, which are there."""
    from packaging.requirements import Requirement

    from lit_small_lm import __version__

    yield Finding("version", PACKAGE, "ok", __version__)
    yield Finding("version", "Python", "ok", platform.python_version())
    for line in importlib.metadata.requires(PACKAGE) or []:
        requirement = Requirement(line)
        extras = [name for name in ("hf", "eval", "quant", "plot") if _asks(requirement, name)]
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _required(requirement, "stop", f"pip install '{requirement.name}{requirement.specifier}'")
        elif extras:
            yield _required(requirement, "no", f"pip install '{PACKAGE}[{extras[0]}]'")


def _asks(requirement, extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def _required(requirement, otherwise: State, cure: str) -> Finding:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("version", requirement.name, otherwise, "not installed", cure)
    if requirement.specifier.contains(found, prereleases=True):
        return Finding("version", requirement.name, "ok", found)
    state = "warning" if otherwise == "stop" else otherwise
    return Finding("version", requirement.name, state, f"{found}; wanted {requirement.specifier}", cure)


# ------------------------------------------------------------------------------------------------------------ devices
def devices(scope: Scope) -> Iterator[Finding]:
    """The CPU and every GPU."""
    import torch

    yield Finding("device", "cpu", "ok", f"{os.cpu_count()} processors, {torch.get_num_threads()} threads in use")
    if not torch.cuda.is_available():
        yield Finding("device", "cuda", "no", *_no_cuda())
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield _gpu(index)
    if torch.backends.mps.is_available():
        cure = "train on the CPU, or on a machine with CUDA"
        yield Finding("device", "mps", "no", "this Mac's GPU is there; training on it is not supported", cure)


def _no_cuda() -> tuple[str, str]:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        if shutil.which("nvidia-smi"):
            return (
                "an NVIDIA driver is there, but this PyTorch is built without CUDA",
                "install a CUDA build: pytorch.org",
            )
        return "this PyTorch is built without CUDA", ""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES"
    return (
        f"PyTorch for CUDA {torch.version.cuda} finds no usable GPU",
        "look at nvidia-smi: GPU, driver and its version",
    )


def _gpu(index: int) -> Finding:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    what = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, capability {capability[0]}.{capability[1]}"
    if free < total / 2:
        return Finding("device", f"cuda:{index}", "warning", f"{what}: in use", "nvidia-smi shows by whom")
    return Finding("device", f"cuda:{index}", "ok", what)


# ---------------------------------------------------------------------------------------------------------- precision
def precisions(scope: Scope) -> Iterator[Finding]:
    """Which precisions are usable on the device a run takes by itself, and which of them it takes."""
    import torch

    from lit_small_lm.cli.report import choose_precision

    chosen, why = choose_precision("auto", None)
    device = "GPU" if torch.cuda.is_available() else "CPU"
    for name in ("32-true", "bf16-mixed", "16-mixed"):
        if name == chosen:
            yield Finding("precision", name, "ok", f"taken unless asked otherwise: {why}")
        elif name == "16-mixed" and device == "CPU":
            yield Finding("precision", name, "no", "Lightning has no fp16 on CPUs", "bf16-mixed, 32-true")
        elif name == "bf16-mixed" and chosen != name:
            yield Finding("precision", name, "warning", f"works, but slowly: {why}", f"--trainer.precision {chosen}")
        else:
            yield Finding("precision", name, "ok", f"--trainer.precision {name}")


# ------------------------------------------------------------------------------------------------------------ compile
def compilers(scope: Scope) -> Iterator[Finding]:
    """Whether --compile can work: a C++ compiler for the CPU, triton for GPUs; with --full one function is compiled."""
    import torch

    if torch.cuda.is_available():
        there = importlib.util.find_spec("triton") is not None
        cure = "" if there else "pip install triton; --compile off works without"
        yield Finding("compile", "triton", "ok" if there else "no", "installed" if there else "not installed", cure)
    compiler = next(filter(shutil.which, (os.environ.get("CXX") or "g++", "clang++")), None)
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    if compiler is None:
        cure = "install g++ (apt install g++), or name one in CXX; --compile off works without"
        yield Finding("compile", "C++", "no", "no C++ compiler (g++, clang++) on the PATH", cure)
    elif not headers:
        yield Finding("compile", "C++", "warning", f"{compiler}, without Python.h", "apt install python3-dev")
    else:
        yield Finding("compile", "C++", "ok", shutil.which(compiler))
    if scope.full:
        yield _compile_something("cuda" if torch.cuda.is_available() else "cpu")


def _compile_something(device: str) -> Finding:
    import torch

    try:
        x = torch.arange(64.0, device=device, requires_grad=True)
        torch.compile(lambda x: (x * 2 + 1).sin().sum())(x).backward()
    except Exception as error:  # whatever a compiler may say
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {lines[0][:120] if lines else ''}"
        return Finding("compile", "torch.compile", "no", f"failed on {device}: {why}", "--compile off works without")
    return Finding("compile", "torch.compile", "ok", f"a function was compiled on {device}")


# --------------------------------------------------------------------------------------------------------- strategies
def strategies(scope: Scope) -> Iterator[Finding]:
    """What several processes need: a way to talk, and the strategies that use it."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        cure = "another build of PyTorch; one process works without"
        yield Finding("strategy", "ddp, FSDP2", "no", "this PyTorch is built without torch.distributed", cure)
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend = "nccl" if count else "gloo"
    there = distributed.is_nccl_available() if count else distributed.is_gloo_available()
    for name in ("ddp", "FSDP2"):
        where = f"{count} GPU{'s' * (count > 1)}" if count else "CPU processes"
        what = f"{where} by {backend}" if there else f"this PyTorch is built without {backend}"
        cure = "" if there else "another build of PyTorch"
        yield Finding("strategy", name, "ok" if there else "no", what, cure)
    if count == 1:
        yield Finding("strategy", "processes", "ok", "one GPU: one process (several on --trainer.accelerator cpu)")
    if scope.full and there:
        yield _talk(backend)


def _talk(backend: str) -> Finding:
    import torch
    from torch import distributed

    try:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        distributed.all_reduce(torch.ones(1, device="cuda" if backend == "nccl" else "cpu"))
        distributed.destroy_process_group()
    except (RuntimeError, ValueError, OSError) as error:
        why = str(error).strip().splitlines()[0][:120]
        cure = f"{backend.upper()}_SOCKET_IFNAME names the network interface"
        return Finding("strategy", backend, "no", f"failed: {why}", cure)
    return Finding("strategy", backend, "ok", "a process group was opened and used")


# ------------------------------------------------------------------------------------------------------------ machine
def machine(scope: Scope) -> Iterator[Finding]:
    """Disk, memory, shared memory and file descriptors."""
    from lit_small_lm.data.cache import default_cache

    cure = "set LIT_SMALL_LM_CACHE, or --data.cache_dir"
    yield folder("data cache", default_cache(), 5, cure)
    yield folder("runs", Path("runs"), 5, "give --run_dir a place with room")
    yield folder("temporary", Path(tempfile.gettempdir()), 1, "set TMPDIR")
    yield memory()
    shared = Path("/dev/shm")  # noqa: S108  (looked at, not written to)
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        short = free < GIB // 4
        cure = "docker run --shm-size 2g; or --data.num_workers 0" if short else ""
        yield Finding("machine", "shared memory", "warning" if short else "ok", f"{free / GIB:.2f} GiB free", cure)
    yield from descriptors()


def folder(name: str, path: Path, wanted: float, cure: str) -> Finding:
    """Whether there is room for `wanted` GiB below a path that need not be there yet, and whether it can be written."""
    place = next((here for here in (path.absolute(), *path.absolute().parents) if here.exists()), Path("/"))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written to" if place.is_dir() else "is a file"
        return Finding("machine", name, "warning", f"{path}: {place} {why}", cure)
    free = shutil.disk_usage(place).free / GIB
    if free < wanted:
        return Finding("machine", name, "warning", f"{path}: {free:.1f} GiB free", cure)
    return Finding("machine", name, "ok", f"{path}: {free:.0f} GiB free")


def memory() -> Finding:
    """Memory that is free, within the limit of the container if there is one."""
    free = free_memory()
    if free is None:
        return Finding("machine", "memory", "ok", "how much is free is not known on this system")
    if free < 2 * GIB:
        cure = "a smaller --data.batch_size or --model.shape, or end what else runs"
        return Finding("machine", "memory", "warning", f"{free / GIB:.1f} GiB free", cure)
    return Finding("machine", "memory", "ok", f"{free / GIB:.1f} GiB free")


def free_memory() -> int | None:
    """Bytes of memory that a process can still have, within the limit of the container; None where nobody says."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    limit, used = (_number(Path("/sys/fs/cgroup", name)) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def descriptors() -> Iterator[Finding]:
    """How many files a process may hold open."""
    if importlib.util.find_spec("resource") is None:
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = 0 <= limit < 1024
    cure = "ulimit -n 4096" if few else ""
    yield Finding("machine", "open files", "warning" if few else "ok", f"{limit} at most", cure)


# ---------------------------------------------------------------------------------------------------- hub and plug-ins
def hub(scope: Scope) -> Iterator[Finding]:
    """Whether data sets by hub name can be fetched."""
    offline = [name for name in OFFLINE if os.environ.get(name, "0").lower() in ("1", "true", "yes", "on")]
    where = os.environ.get("HF_ENDPOINT") or HUB
    if offline:
        yield Finding(
            "hub", "offline", "no", f"{offline[0]} is set: data sets from its cache only", f"unset {offline[0]}"
        )
    elif not scope.full:
        yield Finding("hub", "network", "ok", f"{where} was not asked (--full asks)")
    else:
        yield _reach(where)


def _reach(where: str) -> Finding:
    if not where.startswith(("http://", "https://")):
        return Finding("hub", "network", "no", f"HF_ENDPOINT is {where}; allowed: an http address", "unset HF_ENDPOINT")
    try:
        with urllib.request.urlopen(urllib.request.Request(where, method="HEAD"), timeout=5):  # noqa: S310 (http only)
            return Finding("hub", "network", "ok", f"{where} answers")
    except urllib.error.HTTPError as error:
        return Finding("hub", "network", "ok", f"{where} answers ({error.code})")
    except (OSError, ValueError) as error:
        cure = "local files work without; behind a proxy set https_proxy"
        return Finding("hub", "network", "no", f"{where}: {error}", cure)


def plugins(scope: Scope) -> Iterator[Finding]:
    """Plug-ins that could not be loaded."""
    from lit_small_lm.discovery import PluginWarning, discover, origins

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        discover(scope.plugins)
    broken = [str(w.message) for w in caught if issubclass(w.category, PluginWarning)]
    for text in broken:
        yield Finding("plug-in", "broken", "warning", text, "mend or remove it; the others load")
    count = sum(origin.source != "built-in" for origin in origins())
    yield Finding("plug-in", "loaded", "ok", f"{count} beside the built-in parts")


CHECKS: tuple[Callable[[Scope], Iterator[Finding]], ...] = (
    versions,
    devices,
    precisions,
    compilers,
    strategies,
    machine,
    hub,
    plugins,
)
ESSENTIAL = (versions, devices, precisions, plugins)
"""Checks whose own failure means that training fails too."""


def findings(scope: Scope) -> Iterator[Finding]:
    """Everything found; a check that fails itself is a finding."""
    for check in CHECKS:
        try:
            yield from check(scope)
        except Exception as error:  # a doctor names what is broken; it does not break
            state = "stop" if check in ESSENTIAL else "warning"
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            python = Path(sys.executable).name
            cure = f"{python} -m pip install {PACKAGE}" if isinstance(error, ImportError) else ""
            yield Finding(check.__name__, "check", state, why, cure)
