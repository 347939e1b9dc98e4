"""The event files that TensorBoard reads, against its own writer and reader."""

import io

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from lit_small_lm.training.events import BLOCK, checksum, record
from lit_small_lm.training.logger import Line, Position, RunLogger

SIZES = [0, 1, 2, 3, 4, 5, 8, 157, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 3, 3 * BLOCK + 2]


def test_the_checksum_is_that_of_the_standard():
    assert checksum(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("size", SIZES)
def test_the_checksum_is_that_of_bytes_one_by_one(size):
    """The plain twin is TensorBoard's own."""
    message = np.random.default_rng(size).bytes(size)
    assert checksum(message) == crc32c(message)


@pytest.mark.parametrize("size", SIZES)
def test_a_record_is_what_tensorboard_writes(size):
    message, written = np.random.default_rng(size).bytes(size), io.BytesIO()
    RecordWriter(written).write(message)
    assert record(message) == written.getvalue()


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


def test_every_file_of_events_has_a_name_of_its_own(tmp_path):
    for _ in range(2):
        RunLogger().open(tmp_path, 0)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
