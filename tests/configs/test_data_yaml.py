"""The data recipes that ship, on local parquet files in place of the hub's: the same configuration, the same code."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from lit_small_lm.__main__ import main
from lit_small_lm.cli.lit import roots
from lit_small_lm.cli.request import check_request
from lit_small_lm.data.datamodule import TokenData
from lit_small_lm.data.mixture import Mixture, Weighted
from lit_small_lm.data.plan import RowOrder
from lit_small_lm.data.tables import HFDataset
from lit_small_lm.data.tokenizer import Bytes
from lit_small_lm.discovery import discover
from lit_small_lm.plugin import Source

FOUNDING = Path(__file__).parents[2] / "configs" / "data" / "founding_mix.yaml"
SHARES = {"finepdfs": 0.5, "dclm": 0.3, "fineweb_edu": 0.2}
TINY = [
    "--model", "AutoregressiveLM", "--model.shape.dim", "16", "--model.shape.n_layers", "1",
    "--model.shape.n_heads", "2",
    "--data.tokenizer", "Bytes", "--data.seq_len", "32", "--data.batch_size", "8", "--data.packing", "best_fit",
    "--trainer.max_steps", "4", "--trainer.val_check_interval", "4", "--trainer.accelerator", "cpu",
    "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A folder of two parquet files for each hub set, with documents of very different lengths."""
    from datasets import Dataset

    folder, rng = tmp_path_factory.mktemp("twins"), random.Random(3)
    for name, words in (("finepdfs", 60), ("dclm", 20), ("fineweb_edu", 7)):
        (folder / name).mkdir()
        for shard in range(2):
            texts = [
                f"{name} {shard} {row} "
                + " ".join(rng.choices("one two three four five".split(), k=rng.randint(1, words)))
                for row in range(200)
            ]
            Dataset.from_dict({"text": texts}).to_parquet(str(folder / name / f"train-{shard}-of-2.parquet"))
    return folder


def on(twins):
    """The recipe's options, with the twins in place of the hub sets."""
    paths = [(f"--data.source.sources.{name}.source.path", str(twins / name)) for name in SHARES]
    return ["--data", str(FOUNDING), *itertools.chain(*paths)]


def test_the_recipe_names_the_hub_sets_and_their_shares():
    discover()
    tree = check_request(["--model", "AutoregressiveLM", "--data", str(FOUNDING)], roots()).tree["data"]["source"]
    mixture = Source.from_dict(tree)
    assert {c.name: pytest.approx(c.weight) for c in mixture.components()} == SHARES
    paths = [c.source.path for c in mixture.components()]
    assert paths == ["codelion/finepdfs-1B", "codelion/dclm-baseline-1B", "codelion/fineweb-edu-1B"]
    assert all((c.source.split, c.source.text_column) == ("train", "text") for c in mixture.components())


@pytest.mark.parametrize("reading", ["prepared", "streamed"])
def test_the_recipe_trains_on_local_parquet(reading, twins, tmp_path):
    argv = ["fit", *on(twins), *TINY, "--data.reading", reading, "--run_dir", str(tmp_path / "run")]
    assert main(argv) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if "val/loss" in line)
    assert all(scores[f"val/{name}/bits_per_byte_standard_error"] > 0 for name in SHARES)
    assert sum(scores[f"val/{name}/tokens"] for name in SHARES) == scores["val/tokens"]


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_the_tokens_are_mixed_as_the_recipe_says(packing, twins, tmp_path):
    sources = {name: Weighted(source=HFDataset(path=str(twins / name)), weight=share) for name, share in SHARES.items()}
    data = TokenData(Mixture(sources=sources), Bytes(), seq_len=64, packing=packing, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup("validate")
    rows, seen, at_any_point = data.rows("train"), Counter(), []
    packed = {id(part): name for name, part in zip(SHARES, rows.components, strict=True)}
    order = data.training_order()
    assert isinstance(order, RowOrder)
    for number, row in enumerate(order.rows(0, 6000), 1):
        part, place = rows.place(row)
        seen[packed[id(part)]] += targets(part, place)
        if number > 1000:
            at_any_point.append(max(abs(seen[name] / seen.total() - share) for name, share in SHARES.items()))
    assert max(at_any_point) < 0.005


def targets(part, row):
    import numpy as np

    tokens, documents = np.zeros(part.seq_len + 1, np.int64), np.full(part.seq_len + 1, -1)
    part.write(row, tokens, documents)
    return int((documents[:-1] >= 0).sum())
