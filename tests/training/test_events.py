"""The event files that TensorBoard reads, against its own reader."""

import errno
import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from lit_small_lm.training.logger import Line, Position, RunLogger, append_all


def test_tensorboard_reads_what_a_run_logs(tmp_path):
    logger = RunLogger()
    logger.open(tmp_path, 0)
    logger.write([Line(Position(step, 10 * step, 0.1), {"train/loss": 1 / step}) for step in (1, 2, 3)])
    logger.write([Line(Position(), {})])  # nothing
    logger.draw("picture", np.zeros((2, 3, 3), np.uint8), 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    version, *events, image = EventFileLoader(str(file)).Load()
    assert version.file_version == "brain.Event:2" and image.summary.value[0].tag == "picture"
    found = [{value.tag: value.tensor.float_val[0] for value in event.summary.value} for event in events]
    assert [event.step for event in events] == [1, 2, 3]
    assert found == [{"tokens": 10.0 * n, "train/loss": pytest.approx(1 / n)} for n in (1, 2, 3)]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_as_many_lines_are_kept_as_there_is_room_for(tmp_path, monkeypatch):
    file, room, write = tmp_path / "lines", 25, os.write

    def little(number, data):
        if os.fstat(number).st_size + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(number, data)

    monkeypatch.setattr(os, "write", little)
    with pytest.raises(OSError, match="No space left"):
        append_all(file, [b"nine 1234\n"] * 4)
    assert file.read_bytes() == b"nine 1234\n" * 2
    room = 100
    append_all(file, [b"nine 1234\n"] * 4)
    assert file.read_bytes() == b"nine 1234\n" * 6


def test_every_file_of_events_has_a_name_of_its_own(tmp_path):
    for _ in range(2):
        RunLogger().open(tmp_path, 0)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
