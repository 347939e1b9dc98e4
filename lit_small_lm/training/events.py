"""TensorBoard's event files: one record after another, each a length and a message with their checksums (CRC-32C).

TensorBoard's own writer hands every event to a thread, which goes through its bytes in Python; for a tiny network that
takes as long as a layer. Here an event is written by whoever has it. The one trick: a checksum is linear over bits, so
that of a message is the exclusive or of what every byte adds to it at its distance from the end, which a table knows.
"""

import functools
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, lowest bit first (RFC 3720, appendix B.4)."""
BLOCK = 512
"""Bytes whose shares are looked up together."""
MASK = 0xA282EAD8
"""What TensorFlow adds to a checksum, so that one of data that holds checksums is sound as well."""
ALL = 0xFFFFFFFF
_numbers = itertools.count()


def new_name() -> str:
    """A name for a file of events, of which every process has others."""
    return f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"


def records(events: Iterable[Any]) -> bytes:
    """Events as they stand in a file, one after another."""
    return b"".join(record(event.SerializeToString()) for event in events)


def record(message: bytes) -> bytes:
    """A message as it stands in a file: length, checksum of the length, message, checksum of the message."""
    return _length(len(message)) + message + _masked(message)


@functools.lru_cache(1024)
def _length(size: int) -> bytes:
    length = struct.pack("<Q", size)
    return length + _masked(length)


def _masked(message: bytes) -> bytes:
    found = checksum(message)
    return struct.pack("<I", ((found >> 15 | found << 17) + MASK) & ALL)


def checksum(message: bytes) -> int:
    """CRC-32C."""
    state = ALL
    for start in range(0, len(message), BLOCK):
        block = np.frombuffer(message, np.uint8, min(BLOCK, len(message) - start), start).copy()  # (N,)
        block[:4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)[: len(block)]
        shares = _table().take(block + _rows()[BLOCK - len(block) :])  # (N,)
        state = int(np.bitwise_xor.reduce(shares)) ^ state >> 8 * len(block)
    return state ^ ALL


@functools.cache
def _table() -> np.ndarray:
    """(BLOCK * 256,) what each value of a byte adds, for the first byte of a block to its last."""
    share = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        share = share >> 1 ^ (share & 1) * np.uint32(POLYNOMIAL)
    last, table = share, [share]
    for _ in range(BLOCK - 1):
        share = share >> 8 ^ last[share & 0xFF]
        table.append(share)
    return np.concatenate(table[::-1])


@functools.cache
def _rows() -> np.ndarray:
    """(BLOCK,) where in the table each byte of a block has its values."""
    return np.arange(BLOCK) * 256
