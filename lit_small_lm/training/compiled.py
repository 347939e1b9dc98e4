"""torch.compile: of the whole network, or of one layer of each kind; and where it keeps the code that it loads again.

A deep network compiled whole is unrolled, and that takes minutes. By layers each kind of layer is compiled once, and
run for all of its kind. The folder of the code has to be the user's own: by default it is one below /tmp named after
the user, which anybody on the machine may make first (TORCHINDUCTOR_CACHE_DIR names another). What lies in it is run
without being looked at.
"""

import getpass
import os
import stat
import tempfile
from pathlib import Path

import torch

from lit_small_lm.backbone import Backbone
from lit_small_lm.errors import RunError, shown
from lit_small_lm.kernels.building import load

BY_LAYERS = "layers"
MODES = ("off", "default", BY_LAYERS, "reduce-overhead", "max-autotune")
"""What `compile_network` knows, and "off"."""
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The folder that torch takes."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    user = "".join(c if c.isalnum() else "_" for c in getpass.getuser())
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def compile_network(net: Backbone, mode: str, device: str | None = None) -> None:
    """Compile in place: names of weights stay. Nothing is compiled before the first forward pass.

    Args:
        mode: "layers", or a mode of torch.compile for the whole network ("default", "reduce-overhead",
            "max-autotune"); "off": nothing is done.
        device: the kind of device that it is to run on; None: the one that it lies on. For a CPU the kernels of this
            package are loaded, and compiled if need be.

    Raises:
        RunError: machine code would be read from a folder that others may write to.
    """
    device = device or next(net.parameters()).device.type
    if device == "cuda" or mode != "off":  # on CUDA attention that needs a mask is compiled, whatever is asked
        refuse_foreign_cache()
    if mode == "off":
        return
    if device == "cpu":
        load(cache_folder())
    keep_less()
    net.score.pieces = "compiled"
    if mode != BY_LAYERS:
        net.compile(mode=None if mode == "default" else mode)
        return
    raise_limit(2 * len(net.layers))  # layers that differ are compiled one by one, and all of them fit
    for layer in net.layers:
        layer.compile()


def keep_less() -> None:
    """Have what is computed position by position, such as the hidden layer of a gated MLP, computed again in the
    backward pass, not kept for it; for about 1 % of a step's time. PyTorch does so only where no product reads it."""
    torch._functorch.config.ban_recompute_materialized_backward = False


def raise_limit(count: int) -> None:
    """Let the compiler keep so many forms of one function; past its limit it silently compiles no more."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, count)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 8 * count)


def refuse_foreign_cache() -> None:
    """Make the folder, for this user alone, if it is not there; an empty one of the user's own is made that, too, since
    torch makes it while it is imported, for whomever the umask says.

    Raises:
        RunError: it is somebody else's, or others may write to it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.getuid() and found.st_mode & OTHERS and not any(folder.iterdir()):
            folder.chmod(0o700)
            found = found if any(folder.iterdir()) else folder.stat()
    except OSError as error:
        raise RunError(f"compile: {shown(str(folder))}: {error.strerror}; {VARIABLE} names another folder") from None
    fault = "belongs to another user" if found.st_uid != os.getuid() else "can be written to by others"
    if found.st_uid != os.getuid() or found.st_mode & OTHERS:
        text = f"compile: {shown(str(folder))}: {fault}, and its code would be run; allowed: a folder of your own"
        raise RunError(f"{text}, named by {VARIABLE}")
