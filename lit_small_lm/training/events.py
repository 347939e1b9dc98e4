"""TensorBoard's event files, written by whoever has the events: for a tiny network, handing them to the thread of
TensorBoard's own writer takes as long as a layer."""

import io
import itertools
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

_numbers = itertools.count()


def new_name() -> str:
    """A name for a file of events, of which every process has others."""
    return f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"


def records(events: Iterable[Any]) -> bytes:
    """Events as they stand in a file, one after another."""
    return framed(event.SerializeToString() for event in events)


def framed(messages: Iterable[bytes]) -> bytes:
    """Messages as records, each with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = io.BytesIO()
    writer = RecordWriter(written)
    for message in messages:
        writer.write(message)
    return written.getvalue()
