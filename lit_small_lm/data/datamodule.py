"""The data module: documents in, batches of packed rows out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, Trainer

from lit_small_lm.data.packing import BatchLoader, EvalPlan, Rows, TrainPlan
from lit_small_lm.data.sources import TextFiles
from lit_small_lm.data.store import SplitTokens, TokenStore, default_cache, prepare
from lit_small_lm.data.tokenizer import BPE
from lit_small_lm.errors import RequestError
from lit_small_lm.plugin import Batch, Encoder, Source, Split, Tokenizer
from lit_small_lm.spec import check_settings


class TokenData(LightningDataModule):
    """Tokenises a source once and hands out rows of packed documents.

    Args:
        source: where documents come from.
        tokenizer: how text becomes ids; trained on the training documents where it has to be.
        seq_len: positions of a row.
        batch_size: rows of one optimizer step, over all processes and accumulated batches.
        num_workers: loader processes; 0 loads in the training process, which is enough for prepared tokens.
        cache_dir: where token stores are kept; null: $LIT_SMALL_LM_CACHE or the user's cache folder.

    Raises:
        RequestError: a value out of range, a corpus that cannot be read, or one smaller than a batch.
    """

    def __init__(
        self,
        source: Source = TextFiles(),
        tokenizer: Tokenizer = BPE(),
        seq_len: int = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("seq_len", seq_len, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise RequestError(f"data.{name}: {value}; allowed: at least {least}")
        problems = [*check_settings(source, "data.source"), *check_settings(tokenizer, "data.tokenizer")]
        if problems:
            raise RequestError("; ".join(problems))
        self.source, self.tokenizer = source, tokenizer
        self.seq_len, self.batch_size, self.num_workers = seq_len, batch_size, num_workers
        self.cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self.seed = 0
        """Seed of the order of training rows; the command line sets it from seed_everything."""
        self.encoder_record: dict[str, object] | None = None
        """The record of the tokenizer to use instead of learning one: that of the checkpoint training goes on from."""
        self._store: TokenStore | None = None
        self._splits: dict[Split, SplitTokens] = {}

    def prepare_data(self) -> None:
        """Tokenise, in one process of each machine."""
        prepare(self.source, self.tokenizer, self.cache, self.encoder_record)

    def setup(self, stage: str) -> None:
        self._store = prepare(self.source, self.tokenizer, self.cache, self.encoder_record)
        if stage == "fit":
            self._check_size()
            count_in_steps(self.trainer, len(self.rows("train")) // self.batch_size)
            self._plan()

    def _check_size(self) -> None:
        rows, needed = len(self.rows("train")), self.batch_size
        if rows < needed:
            found, wanted = self.split("train").tokens.size, needed * self.seq_len + 1
            raise RequestError(
                f"data: {found} training tokens; one batch of data.batch_size {needed} x data.seq_len {self.seq_len} "
                f"needs {wanted}"
            )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    @property
    def store(self) -> TokenStore:
        """The prepared corpus. Raises RequestError before `setup`."""
        if self._store is None:
            raise RequestError("data: call setup() before asking for tokens")
        return self._store

    @property
    def encoder(self) -> Encoder:
        """The tokenizer in use; owns `vocab_size` and the special ids."""
        return self.store.encoder

    def split(self, split: Split) -> SplitTokens:
        """The tokens of a split."""
        if split not in self._splits:
            self._splits[split] = self.store.split(split)
        return self._splits[split]

    def rows(self, split: Split) -> Rows:
        """The rows of a split: whole ones to train on, all of them to evaluate."""
        return Rows(self.split(split), self.seq_len, self.encoder.specials, whole=split == "train")

    def notes(self) -> Sequence[str]:
        """What a user should know of the prepared data, a line each."""
        counts = self.store.summary()["splits"]
        lines = [
            f"data: {split} {count['documents']:,} documents, {count['tokens']:,} tokens, {count['bytes']:,} bytes"
            for split, count in counts.items()
        ]
        asked = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPE) else self.encoder.specials.vocab_size
        if self.encoder.specials.vocab_size < asked:
            lines.append(f"data: the corpus fills {self.encoder.specials.vocab_size} of the {asked} ids asked for")
        return lines

    def _plan(self) -> TrainPlan:
        trainer = self.trainer
        return TrainPlan(
            rows=len(self.rows("train")),
            seed=self.seed,
            batch_size=self.batch_size,
            accumulate=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            steps=trainer.max_steps + 1,  # one more than will be taken: Lightning never reaches the end of an epoch
        )

    def train_dataloader(self) -> BatchLoader:
        pin = self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(self.rows("train"), self._plan(), self.num_workers, pin=pin)

    def val_dataloader(self) -> BatchLoader:
        return self._evaluated("validation")

    def test_dataloader(self) -> BatchLoader:
        return self._evaluated("test")

    def _evaluated(self, split: Split) -> BatchLoader:
        trainer, rows = self.trainer, self.rows(split)
        size = max(1, self.batch_size // (trainer.accumulate_grad_batches * trainer.world_size))
        plan = EvalPlan(len(rows), size, trainer.global_rank, trainer.world_size)
        return BatchLoader(rows, plan, pin=trainer.strategy.root_device.type == "cuda")


def count_in_steps(trainer: Trainer, steps_per_epoch: int) -> None:
    """Turn a run given in epochs into one given in steps, so that schedules know its length.

    To Lightning every run is then one epoch, which keeps its epoch boundaries out of an exact resume.
    """
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        steps = trainer.max_epochs * steps_per_epoch
        trainer.fit_loop.epoch_loop.max_steps = steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)
    if trainer.max_steps < 0:
        raise RequestError("trainer.max_steps: not given; a run needs trainer.max_steps or trainer.max_epochs")
    trainer.fit_loop.max_epochs = -1
