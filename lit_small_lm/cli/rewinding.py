"""Going back after steps that were not finite: the run is resumed from an earlier checkpoint, in the same process,
and leaves out the data that led there."""

from pathlib import Path
from typing import Any

from lit_small_lm.checkpoint import checkpoints_in, read, step_of
from lit_small_lm.cli.run_options import Start, start_from
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.durable import manifest_of
from lit_small_lm.errors import RunError
from lit_small_lm.training.callbacks.guard import Diverged, Guard


class Rewind(BaseException):
    """The run goes on from `start`."""

    def __init__(self, text: str, run_dir: Path, start: Start) -> None:
        super().__init__(text)
        self.run_dir, self.start = run_dir, start


def answer(fault: Diverged, guard: Guard, data: TokenData, run_dir: Path) -> BaseException:
    """What to raise for steps that were not finite: the way back if there is one, else an error."""
    if guard.non_finite != "rewind" or not fault.first:
        return fault
    if guard.rewound >= guard.rewinds:
        return RunError(f"{fault} (went back {guard.rewound} times, guard.rewinds)")
    good = _newest_before(run_dir, fault.first)
    if good is None:
        return RunError(f"{fault} (no checkpoint from before it to go back to)")
    file, content = good
    step = step_of(file)
    for later in checkpoints_in(run_dir):
        if step_of(later) > step:
            later.unlink()
            manifest_of(later).unlink(missing_ok=True)
    data.leave_out(step, fault.last)
    number = guard.rewound + 1
    start = start_from(file, content, left_out=data.left_out, rewound=number)
    way = f"back to step {step}, leaving out the data of steps {step + 1} to {fault.last}"
    return Rewind(f"{fault.first_line}; rewind {number} of {guard.rewinds}: {way}", run_dir, start)


def _newest_before(run_dir: Path, step: int) -> tuple[Path, dict[str, Any]] | None:
    for file in checkpoints_in(run_dir):
        if step_of(file) < step:
            try:
                return file, read(file)
            except RunError:
                continue
    return None
