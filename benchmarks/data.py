"""How fast the data comes, beside what it is measured against on the same machine.

    python benchmarks/data.py [--quick]

prints one JSON line: tokens per second read from a store (rows of 1024, one thread, both packings), streamed from a
mixture of parquet files that are tokenised on the way, and trained on by a model of 7.4M parameters.
"""

import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lit_small_lm.backbone import Backbone, BackboneSpec
from lit_small_lm.context import Context, Visibility
from lit_small_lm.data.loader import BatchLoader, PreparedFeed, Rows
from lit_small_lm.data.mixture import Interleaving, Mixture, Weighted
from lit_small_lm.data.packing import pack
from lit_small_lm.data.plan import Pace, RowOrder, Shares, TrainPlan
from lit_small_lm.data.shards import SplitTokens, TokenFile
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.streaming import Reader, StreamedFeed
from lit_small_lm.data.tables import HFDataset
from lit_small_lm.data.tokenizer import BPE
from lit_small_lm.plugin import Batch, Encoder, Specials
from lit_small_lm.shapes import FixedShape

QUICK = "--quick" in sys.argv
TOKENS = 1 << 18 if QUICK else 1 << 26
VOCAB = 512 if QUICK else 4096
SEQ_LEN = 256
BATCH = 8
STEPS = 1 if QUICK else 4
SHAPE = FixedShape(dim=256, n_layers=8, n_heads=8, hidden=688)
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


def rate(batches: Iterator[Batch]) -> float:
    """Tokens per second of batches, from asking for the first to the last."""
    started, tokens = time.perf_counter(), 0
    for batch in batches:
        tokens += batch.tokens[:, 1:].numel()
    return tokens / (time.perf_counter() - started)


def store(folder: Path) -> SplitTokens:
    """A split of four shards: documents of about 900 tokens, some of them very long."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6.3, 1.0, TOKENS // 600).astype(np.int64) + 1, 50_000)
    starts = np.cumsum(lengths) - lengths
    starts = starts[starts < TOKENS]
    pieces = []
    for shard in range(4):
        file = folder / f"{shard}.tokens"
        rng.integers(3, VOCAB, TOKENS // 4, dtype=np.uint16).tofile(file)
        pieces.append(TokenFile(file, TOKENS // 4, "uint16"))
    return SplitTokens([*pieces, np.array([0], np.uint16)], starts)


def reading(split: SplitTokens, packing: str) -> float:
    """Tokens per second of shuffled batches of 16 rows of 1024, in this thread; the second epoch, packed already."""
    rows = Rows([pack(split, 1024, packing)], Specials(VOCAB, 0, 1, 2))
    steps = len(rows) // 16
    order = RowOrder([len(rows)], Interleaving([1.0]), [""], 0)
    loader = BatchLoader(PreparedFeed(rows, TrainPlan(Shares(Pace(16, 1024), 1, 0, 1, steps), order)))
    rate(iter(loader))
    return rate(iter(loader))


def parquet(folder: Path) -> Mixture:
    """The standard library's sources dealt out to three data sets of two parquet files each."""
    from datasets import Dataset

    library = TextFiles()
    texts = [d.text for part in range(len(library.parts())) for d in library.read(part)][: 60 if QUICK else None]
    sources = {}
    for number, (name, share) in enumerate(SHARES.items()):
        (folder / name).mkdir()
        for half in range(2):
            Dataset.from_dict({"text": texts[2 * number + half :: 6]}).to_parquet(folder / name / f"{half}.parquet")
        sources[name] = Weighted(source=HFDataset(path=str(folder / name)), weight=share)
    return Mixture(sources=sources)


def streaming(mixture: Mixture, encoder: Encoder) -> float:
    """Tokens per second of a streamed mixture, the first window included."""
    readers = [Reader(part, encoder, SEQ_LEN, "best_fit", 0) for part in mixture.components()]
    steps = 20 if QUICK else 4000
    loader = BatchLoader(StreamedFeed(readers, Shares(Pace(BATCH, SEQ_LEN), 1, 0, 1, steps)))
    return rate(itertools.islice(loader, steps))


def training() -> float:
    """Tokens per second of training steps: the model of 7.4M parameters, packed documents kept apart, AdamW."""
    net = Backbone(BackboneSpec(), SHAPE.resolve(), VOCAB)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    tokens = torch.randint(3, VOCAB, (BATCH, SEQ_LEN + 1))
    documents = (torch.arange(SEQ_LEN) >= SEQ_LEN // 2).long().expand(BATCH, SEQ_LEN)
    for step in range(STEPS + 1):
        if step == 1:
            started = time.perf_counter()  # the first one is warm-up
        row = tokens[:, :-1]
        net(row, Context(Visibility.rows(row, documents)), tokens[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return STEPS * BATCH * SEQ_LEN / (time.perf_counter() - started)


def measured(folder: Path) -> dict[str, float]:
    """Everything, in tokens per second."""
    split = store(folder)
    found = {f"read_{packing}": reading(split, packing) for packing in ("concatenate", "best_fit")}
    mixture = parquet(folder)
    encoder = BPE(vocab_size=VOCAB).learn(d.text for d in itertools.islice(mixture.read(0), 200))
    rates = [(streaming(mixture, encoder), training()) for _ in range(1 if QUICK else 3)]
    streamed, trained = np.median(rates, axis=0).tolist()
    return {**found, "streamed": streamed, "trained": trained}


def main() -> None:
    """Measure, and print one line."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder))
    record = {"benchmark": "data", "tokens_per_second": {name: round(value) for name, value in found.items()}}
    record |= {
        f"{name}_by_trained": round(rate / found["trained"], 1) for name, rate in found.items() if name != "trained"
    }
    record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**record, "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
