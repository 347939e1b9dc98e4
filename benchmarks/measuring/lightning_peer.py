"""This package's network and objective under Lightning's own Trainer: `python measuring/lightning_peer.py NAME CASE
BATCHES`.

    lightning         the Trainer's defaults: progress bar, a logger, checkpoints; the loss is logged
    lightning_bare    none of them
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_small_lm.batch import Batch
from lit_small_lm.objectives.next_token import NextToken
from lit_small_lm.training.optim import AdamW
from measuring.cases import CASES, Case
from measuring.clock import TurnClock
from measuring.peer import CLIP, RATE, asked, ours

BARE = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}


class Loader:
    """What the Trainer reads batches from."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Plain(LightningModule):
    """The least that trains."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net = ours(case)
        self.loss = asked(self.net, NextToken())

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch, self.global_step)
        if self.trainer.loggers:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return AdamW(lr=RATE).build(list(self.net.named_roles()), True)


def main() -> None:
    """Be a peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("lightning", "lightning_bare"))
    parser.add_argument("case", choices=CASES)
    parser.add_argument("batches", help="a file of them")
    chosen = parser.parse_args()
    batches = torch.load(chosen.batches, weights_only=False)
    options = BARE if chosen.name == "lightning_bare" else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=len(batches), accelerator="cpu", gradient_clip_val=CLIP, default_root_dir=folder,
            callbacks=[TurnClock()], **options,
        )  # fmt: skip
        trainer.fit(Plain(CASES[chosen.case]), Loader(batches))


if __name__ == "__main__":
    main()
