"""How fast a store is prepared, beside the `tokenizers` library's own batch rate on the same texts and cores.

    python benchmarks/tokenising.py [--quick]

prints one JSON line: tokens per second of `encode_batch` and `encode_batch_fast` on texts that are in memory already,
and of `prepare` from parquet to a finished store: reading, splitting, duplicates, digests and writing included.
"""

import json
import os
import platform
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from lit_small_lm.data import store
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.tables import HFDataset
from lit_small_lm.data.tokenizer import BPE, BPEEncoder
from lit_small_lm.data.worker import cores

QUICK = "--quick" in sys.argv
SIZE, VOCAB, ROUNDS = (10**6, 512, 1) if QUICK else (24 * 10**6, 8192, 3)


def texts() -> list[str]:
    """Python files of this installation, `SIZE` characters of them."""
    found, size = [], 0
    for source in (TextFiles(), TextFiles(path=sysconfig.get_paths()["purelib"])):
        for part in range(len(source.parts())):
            if size >= SIZE:
                return found
            document = next(source.read(part))
            if document.text.strip():
                found.append(document.text)
                size += len(document.text)
    return found


def tables(documents: list[str], folder: Path) -> HFDataset:
    """The documents in four parquet files."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    for number in range(4):
        Dataset.from_dict({"text": documents[number::4]}).to_parquet(folder / f"train-{number:05d}.parquet")
    return HFDataset(path=str(folder / "*.parquet"))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time of some work, and processor time of all processes, which a busy machine changes less."""
    started, busy = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - started, sum(os.times()[:4]) - busy


def measured(folder: Path) -> dict[str, object]:
    """Medians of rounds in which each is measured in turn."""
    documents = texts()
    source = tables(documents, folder)
    encoder = BPE(vocab_size=VOCAB).learn(iter(documents[:: 1 if QUICK else 40]))
    assert isinstance(encoder, BPEEncoder)
    library = encoder.library
    os.environ["LIT_SMALL_LM_CACHE"] = str(folder / "cache")
    times: dict[str, list[tuple[float, float]]] = {"encode_batch": [], "encode_batch_fast": [], "prepare": []}
    for number in range(ROUNDS):
        for name in ("encode_batch", "encode_batch_fast"):
            times[name].append(seconds(lambda encode=getattr(library, name): encode(documents)))
        cache = folder / f"cache-{number}"
        times["prepare"].append(seconds(lambda cache=cache: store.prepare(source, encoder, cache)))
    summary = store.prepare(source, encoder, folder / "cache-0").summary()
    tokens = sum(counts["tokens"] - counts["documents"] for counts in summary["splits"].values())
    found = {"documents": len(documents), "tokens": tokens}
    for what, column in (("tokens_per_second", 0), ("tokens_per_processor_second", 1)):
        medians = {name: statistics.median(row[column] for row in rows) for name, rows in times.items()}
        found[what] = {name: round(tokens / median) for name, median in medians.items()}
    return found


def main() -> None:
    """Measure, and print one line."""
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder))
    record = {"benchmark": "tokenising", "cores": cores(), "vocab_size": VOCAB, **found}
    for ending, rates in (("", found["tokens_per_second"]), ("_processor", found["tokens_per_processor_second"])):
        library = [name for name in rates if name != "prepare"]
        record |= {f"prepare_by_{name}{ending}": round(rates["prepare"] / rates[name], 2) for name in library}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
