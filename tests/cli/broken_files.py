"""Files as they should be, and what may have become of them: bytes changed, values swapped, parts cut off."""

import csv
import json
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml

from lit_small_lm.durable import save

VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "x", "\x1b[31m", "../../x", "é" * 400,
    [], [1, "x"], [[]], {}, {"a": 1}, {"class_path": "os.system", "init_args": {"command": "true"}}, "os.system", "0",
)  # fmt: skip


def swapped(tree: Any, draw: random.Random) -> Any:
    """The same plain data with another value, one less, or one of a wrong name somewhere in it."""
    if isinstance(tree, (dict, list)) and tree and draw.random() < 0.85:
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        key = draw.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        change = draw.random()
        if change < 0.75:
            copy[key] = swapped(copy[key], draw)
        elif change < 0.9 or isinstance(copy, list):
            del copy[key]
        else:
            copy[f"{key}x"] = copy.pop(key)
        return copy
    return draw.choice(VALUES)


def torn(data: bytes, draw: random.Random) -> bytes:
    """Bytes with some changed, cut off, doubled or put in: near the ends, where formats keep tables, as often as
    anywhere."""
    if not data:
        return bytes(draw.randrange(256) for _ in range(8))
    at = draw.choice(
        [draw.randrange(len(data)), draw.randrange(min(len(data), 64)), -draw.randrange(min(len(data), 99))]
    )
    at %= len(data)
    size = draw.choice([1, 4, 8, 64])
    new = draw.choice([bytes(size), b"\xff" * size, bytes(draw.randrange(256) for _ in range(size)), b"{", b"9" * 30])
    return draw.choice([data[:at], data[:at] + new + data[at + size :], data[:at] + new + data[at:], data[:at] * 2])


def break_json(file: Path, draw: random.Random) -> None:
    tree = json.loads(file.read_text())
    for _ in range(draw.choice([1, 1, 3])):
        tree = swapped(tree, draw)
    file.write_text(json.dumps(tree))


def break_config(file: Path, draw: random.Random) -> None:
    tree = yaml.safe_load(file.read_text())
    for _ in range(draw.choice([1, 1, 3])):
        tree = swapped(tree, draw)
    file.write_text(yaml.safe_dump(tree, allow_unicode=draw.random() < 0.5))


def break_bytes(file: Path, draw: random.Random) -> None:
    file.write_bytes(torn(file.read_bytes(), draw))


def break_checkpoint(file: Path, draw: random.Random) -> None:
    """Swap something in the record of a checkpoint, or in what it holds beside it."""
    content = torch.load(file, weights_only=True)
    if draw.random() < 0.8:
        content["lit_small_lm"] = swapped(content["lit_small_lm"], draw)
    else:
        content = swapped(content, draw)
    save(file, lambda stream: torch.save(content, stream))  # the digest is right


def break_safetensors(file: Path, draw: random.Random) -> None:
    """Swap something in the header, whose length stays right or does not."""
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(swapped(json.loads(data[8 : 8 + size]), draw)).encode()
    length = draw.choice([len(header)] * 4 + [0, size, 2**40, 2**64 - 1])
    file.write_bytes(struct.pack("<Q", length) + header + data[8 + size :])


def break_parquet(file: Path, draw: random.Random) -> None:
    """Another column, another type, or rows that are none."""
    columns = {draw.choice(["text", "Text", ""]): draw.choice([["a", None], [1, 2], [[1], []], [b"\xff", b"x"], []])}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def write_data(folder: Path) -> None:
    """The same few texts in every form that is read."""
    folder.mkdir()
    texts = [f"page {i}: " + "the cat sat on the mat and went home. " * 5 for i in range(12)]
    (folder / "a.txt").write_text("\n\n".join(texts))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(texts)))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "c.parquet")
    with (folder / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "n"], *([text, i] for i, text in enumerate(texts))])
