"""What starts each peer, and the text that all of them read."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from measuring.cases import BF16, CASES
from measuring.turns import ALLOCATORS

HERE = Path(__file__).parent
FITS = {
    "fit": (),
    "fit_compiled": ("--compile", "default"),
    "fit_layers": ("--compile", "layers"),
    "fit_bf16": ("--trainer.precision", "bf16-mixed"),
    "fit_bf16_compiled": ("--trainer.precision", "bf16-mixed", "--compile", "default"),
}
"""Options of peers that are the command line."""
LOOPS = ("loop", "loop_masked", "module", "masked", "block", *(["litgpt"] if find_spec("litgpt") else []))
"""Networks in a plain loop, see `peer`."""
PEERS = (
    *(f"{loop}{ending}" for loop in LOOPS for ending in ("", "_compiled", BF16, f"{BF16}_compiled")),
    *FITS,
    "lightning_bare",
    "lightning",
)


def environment_of(allocator: str, threads: int) -> dict[str, str]:
    """What peers run in."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**ALLOCATORS[allocator], "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def prepared(shape: str, steps: int, folder: Path, environment: Mapping[str, str]) -> None:
    """Tokenise the text into `folder`, and write down the batches of so many steps."""
    text = [sys.executable, str(HERE / "text.py"), shape, str(steps), str(folder / "cache"), str(folder / "batches.pt")]
    subprocess.run(text, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)


def command(peer: str, shape: str, steps: int, folder: Path) -> list[str]:
    """What starts a peer."""
    if peer in FITS:
        return fit(peer, shape, steps, folder, ("--trainer.limit_val_batches", "0", *FITS[peer]))
    file = "lightning_peer.py" if peer.startswith("lightning") else "peer.py"
    return [sys.executable, str(HERE / file), peer, shape, str(folder / "batches.pt")]


def fit(name: str, shape: str, steps: int, folder: Path, options: Sequence[str] = ()) -> list[str]:
    """The command line, with defaults but for the shape and what `options` say; it runs in `folder`/`name`."""
    case = CASES[shape]
    sizes = {name: getattr(case, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden")}
    return [
        sys.executable, "-m", "lit_small_lm", "fit", "--model", "AutoregressiveLM", "--run_dir", str(folder / name),
        "--data.tokenizer", "BPE", "--data.tokenizer.vocab_size", str(case.vocab_size),
        "--data.seq_len", str(case.length), "--data.batch_size", str(case.rows),
        "--data.cache_dir", str(folder / "cache"), "--trainer.max_steps", str(steps), "--trainer.precision", "32-true",
        "--plugins", str(HERE / "clock.py"), "--trainer.callbacks+=TurnClock", *options,
        *(word for name, size in sizes.items() for word in (f"--model.shape.{name}", str(size))),
    ]  # fmt: skip
