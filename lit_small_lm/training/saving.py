"""Checkpoints are written by a thread of their own while training goes on.

The training thread copies the state, which is all that it waits for (CheckFreq, FAST 2021, calls it the snapshot); the
other one writes, digests, syncs and renames. One file is written at a time. The trick is in what is not done: nothing
is pickled before the copy is complete, so that training may change every tensor as soon as `save_checkpoint` returns.
"""

import copy
import threading
import warnings
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from lit_small_lm.checkpoint import read, write
from lit_small_lm.errors import RequestError, RunError

Saving = Literal["background", "blocking"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes whole checkpoints or none, each with its manifest, and reads none that is not what was written.

    Args:
        saving: "background": beside training, from a copy of the state; "blocking": while training waits, without one.
    """

    def __init__(self, saving: Saving = "blocking") -> None:
        self.saving = saving
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write, or begin to. Raises RunError if this or the last one cannot be written."""
        self.wait()
        state = self._own(checkpoint) if self.saving == "background" else None
        if state is None:
            write(checkpoint, Path(path))
            return
        self._thread = threading.Thread(target=self._write, args=(state, Path(path)), name="checkpoint")
        del state  # the thread lets go of it when it is done
        self._thread.start()

    def _own(self, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
        """A copy of the state that nothing changes; None if there is no memory for it."""
        try:
            return copied(checkpoint)
        except (MemoryError, RuntimeError) as error:  # the second is torch's
            reason = str(error).splitlines()[0][:100] if str(error) else "out of memory"
            warnings.warn(f"checkpoints.saving: no memory for a copy ({reason}); training waits", stacklevel=2)
            return None

    def _write(self, state: dict[str, Any], path: Path) -> None:
        try:
            write(state, path)
        except BaseException as error:  # raised where training looks next
            self._error = error

    def busy(self) -> bool:
        """Whether a file is being written. Raises RunError if the last one could not be."""
        if self._thread is not None and self._thread.is_alive():
            return True
        self.wait()
        return False

    def wait(self) -> None:
        """Until nothing is being written. Raises RunError if the last one could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def teardown(self) -> None:
        """Lightning's last word, whatever ended the run."""
        self.wait()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a file, on the CPU, after its digest was checked.

        Raises:
            RunError: it is damaged, or gone: it was there when the request was checked.
        """
        try:
            return read(Path(path))
        except RequestError as error:
            raise RunError(str(error)) from error


def copied(value: Any, seen: dict[tuple, Tensor] | None = None) -> Any:
    """State with every tensor copied into the CPU's memory; what was one tensor in two places stays one."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        place = (value.device, value.dtype, value.data_ptr(), value.shape, value.stride())
        if place not in seen or not value.numel():
            seen[place] = value.detach().to("cpu", copy=True)
        return seen[place]
    if isinstance(value, dict):
        new = copy.copy(value)  # an OrderedDict of PyTorch's has attributes
        for key, item in value.items():
            new[key] = copied(item, seen)
        return new
    if type(value) in (list, tuple):
        return type(value)(copied(item, seen) for item in value)
    return copy.deepcopy(value)
