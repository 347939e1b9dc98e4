"""The text that peers train on: the standard library's sources, tokenised by this package, as a cache that `fit` reads
and as a file of the same batches in the same order: `python measuring/text.py CASE STEPS CACHE FILE`.
"""

import itertools
import sys
from pathlib import Path

import torch

from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.loader import BatchLoader, PreparedFeed
from lit_small_lm.data.plan import Shares, TrainPlan
from lit_small_lm.data.tokenizer import BPE
from measuring.cases import CASES


def write(name: str, steps: int, cache: Path, file: Path) -> None:
    """Prepare the text, and write down the batches of the first steps."""
    case = CASES[name]
    data = TokenData(
        tokenizer=BPE(vocab_size=case.vocab_size), seq_len=case.length, batch_size=case.rows, cache_dir=str(cache)
    )
    data.prepare_data()
    data.setup("validate")
    assert data.encoder.specials.vocab_size == case.vocab_size
    shares = Shares(data.pace, 1, 0, 1, steps)
    feed = PreparedFeed(data.rows("train"), TrainPlan(shares, data.training_order()))
    torch.save(list(itertools.islice(BatchLoader(feed), steps)), file)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
